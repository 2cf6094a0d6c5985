"""Goes on with the tokens that attention reads most."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.axes import Masks
from lwqc.graph.token_cuts import TOKENS, TokenCut, find_token_cut
from lwqc.model.edit import add_constant, insert_before
from lwqc.passes.prune_channels import update_shapes
from lwqc.passes.repair import repair
from lwqc.passes.token_importance import importance
from lwqc.plans.plan import Importance

OPSET = 12  # the first in which GatherND has a batch
_FIRST = 2.0  # more than any probability: what always stays comes first


def reduce_tokens(model: ir.Model, name: str, keep: int, kind: Importance) -> None:
    """Let everything behind a branch see `keep` of its tokens, in place.

    name: of a branch of self-attention. keep: those that always stay included; where it is no more
    than these, only they are left. kind: see `token_importance`; `class` needs tokens that always
    stay. The number is fixed; which tokens stay is chosen for each sample, and their order is that
    of their importance.

    Raises InputError for what is no such branch, with the reason, and for a number that does not
    fit.
    """
    cut = find_token_cut(model, name)
    if isinstance(cut, str):
        raise InputError(f"{name}: tokens cannot go: {cut}")
    opset = int(model.opset_imports.get("", 1))
    if opset < OPSET:
        raise InputError(f"{name}: tokens cannot go: that needs operator set {OPSET}, not {opset}")
    if not max(cut.always, 1) <= keep < cut.tokens:
        raise InputError(
            f"{name}: has {cut.tokens} tokens of which {cut.always} stay, cannot keep {keep}"
        )
    if kind == "class" and not cut.always:
        raise InputError(f"{name}: no token always stays, so that none can judge the others")
    _rewrite(model.graph, cut, keep, kind, opset)


def _rewrite(graph: ir.Graph, cut: TokenCut, keep: int, kind: Importance, opset: int) -> None:
    stream, shape = cut.stream, cut.stream.shape
    readers = list(stream.uses())
    left = np.arange(cut.free.size) < keep - cut.always
    masks = Masks({cut.free: left})
    for item in cut.analysis.repairs:
        repair(item, cut.analysis, masks)
    update_shapes(cut.analysis, masks)
    stream.shape = shape
    producer = stream.producer()
    assert producer is not None
    anchor = _next(graph, producer)
    kept = _kept(cut, keep, kind, anchor, opset)
    kept.type = stream.type
    if shape is not None:
        kept.shape = ir.Shape(keep if a == TOKENS else size for a, size in enumerate(shape))
    for use in readers:
        use.node.replace_input_with(use.idx, kept)


def _kept(cut: TokenCut, keep: int, kind: Importance, anchor: ir.Node, opset: int) -> ir.Value:
    name, graph = f"{cut.stream.name}/kept", anchor.graph
    assert isinstance(graph, ir.Graph)
    if keep == cut.always:
        bounds = (("start", 0), ("end", keep), ("axis", TOKENS))
        numbers = [add_constant(graph, f"{name}/{n}", np.asarray([v])) for n, v in bounds]
        return insert_before(anchor, "Slice", [cut.stream, *numbers], [name])[0]
    told = importance(cut.scores, kind, cut.always, anchor, name, opset)
    if cut.always:
        first = np.zeros(cut.tokens, np.float32)
        first[: cut.always] = _FIRST + np.arange(cut.always)[::-1]
        inputs = [told, add_constant(graph, f"{name}/first", first)]
        (told,) = insert_before(anchor, "Add", inputs, [f"{name}/importance"])
    count = add_constant(graph, f"{name}/count", np.asarray([keep]))
    _, chosen = insert_before(
        anchor, "TopK", [told, count], [f"{name}/most", f"{name}/places"], {"axis": -1}
    )
    column = add_constant(graph, f"{name}/column", np.asarray([0, keep, 1]))
    (places,) = insert_before(anchor, "Reshape", [chosen, column], [f"{name}/column"])
    return insert_before(anchor, "GatherND", [cut.stream, places], [name], {"batch_dims": 1})[0]


def _next(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node behind one, which reads nothing that comes later."""
    order = list(graph)
    return order[order.index(node) + 1]
