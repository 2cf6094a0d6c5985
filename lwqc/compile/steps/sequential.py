"""Sequential calibration: each layer is quantized for the inputs that the layers before it leave.

With inputs x of the float model and y of the partly quantized one, the best float weight is the
least-squares answer W' to W·x from y (as in OBSPA and GPTAQ, 2504.02692); a weight method then
rounds W' for the Gram matrix of y, and a bias takes up the mean that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.steps.reconstruct import add_to_bias, levels, window
from lwqc.graph.consumers import bias_operand
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.graph.sites import Site, find_sites
from lwqc.model.edit import replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.plans.plan import SiteEntry
from lwqc.quant.grid import Encoded
from lwqc.quant.methods import encode_by
from lwqc.quant.refit import refit
from lwqc.runtime.stats.collector import Feeds, RunnerFactory
from lwqc.runtime.stats.cross_gram import CrossGram, CrossSums
from lwqc.runtime.stats.paired_run import PairedRun
from lwqc.runtime.stats.side_by_side import other_name

_LAYER_BYTES = 4 << 30  # of the matrices of a single layer
_DAMP = 1.0  # strong: few samples must not move a weight far
Encode = Callable[[str, SiteEntry], Encoded]


@dataclass(frozen=True)
class Sequential:
    """model: a copy of the float model with corrected biases. encoded: codes by site.

    apart: sites that were quantized by themselves, and why.
    """

    model: ir.Model
    encoded: Mapping[str, Encoded]
    apart: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A site to quantize: its operator in the float model and in the partly quantized copy."""

    site: Site
    before: Operand
    after: Operand
    depth: int


def quantize_in_sequence(
    model: ir.Model,
    entries: Mapping[str, SiteEntry],
    encode: Encode,
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sequential:
    """Encode the planned sites level by level; the model is left alone.

    entries: site -> format and method. encode: how a site is quantized by itself; used for
    embeddings and for layers whose weight is shared or computed. data: iterated over once; once per
    level of layers that do not depend on each other where there is no room for what lies between
    two, see `PairedRun`.

    Activations stay float while this looks at them. Raises InputError when `data` is empty.
    """
    original, current, corrected = model.clone(), model.clone(), model.clone()
    layers, apart = _layers(original, current, entries)
    encoded: dict[str, Encoded] = {}
    sites = {s.name: s for s in find_sites(current).sites}
    for name in apart:
        encoded[name] = encode(name, entries[name])
        if apart[name] != _COMPUTED:
            _store_matrix(sites[name], encoded[name].decode())
    nodes = {n.outputs[0].name: n for n in corrected.graph}
    order = list(levels(layers, lambda layer: layer.depth, _matrix_bytes))
    collectors = [[_collector(layer) for layer in level] for level in order]
    run = PairedRun(original, current, collectors, data, make_runner)
    done = 0
    for level, observed in zip(order, collectors, strict=True):
        found = run.advance()
        for layer, collector in zip(level, observed, strict=True):
            result, shift = _solve(layer, entries[layer.site.name], found[collector])
            encoded[layer.site.name] = result
            replace_stored(
                layer.after.weight.source, layer.after.stored(result.decode().astype(float))
            )
            for node in (layer.after.node, nodes[layer.after.node.outputs[0].name]):
                if bias := bias_operand(node, layer.after.out):
                    add_to_bias(*bias, shift)
        done += len(level)
        progress(done, len(layers))
    return Sequential(corrected, encoded, apart)


def _layers(
    original: ir.Model, current: ir.Model, entries: Mapping[str, SiteEntry]
) -> tuple[list[_Layer], dict[str, str]]:
    befores = {n.outputs[0].name: n for n in original.graph}
    depths = _depths(current, set(entries))
    layers, apart = [], {}
    for site in find_sites(current).sites:
        if site.name not in entries:
            continue
        node = site.uses[0].node
        after = linear_operand(node)
        before = befores.get(node.outputs[0].name)
        operand = linear_operand(before) if before is not None else None
        if isinstance(after, str):
            apart[site.name] = _COMPUTED if "reshaped" in after else after
        elif after is None or not isinstance(operand, Operand):
            apart[site.name] = f"{node.op_type} has no input to fit to"
        elif after.users > 1 or len(site.uses) > 1:
            apart[site.name] = "its weight is shared"
        elif _bytes(after) > _LAYER_BYTES:
            apart[site.name] = f"its matrices would take {_bytes(after) >> 20} MB"
        else:
            layers.append(_Layer(site, operand, after, depths[after.activation]))
    return layers, apart


_COMPUTED = "its weight is computed from the stored one"


def _depths(model: ir.Model, names: set[str]) -> dict[ir.Value, int]:
    """How many planned sites lie on the longest way to each value."""
    readers = {u.node for s in find_sites(model).sites if s.name in names for u in s.uses}
    depths: dict[ir.Value, int] = dict.fromkeys(model.graph.inputs, 0)
    for node in model.graph:
        below = [depths.get(v, 0) for v in node.inputs if v is not None]
        below += [depths.get(v, 0) for v in _outer_values(node)]
        depth = max(below, default=0) + (node in readers)
        depths.update(dict.fromkeys(node.outputs, depth))
    return depths


def _outer_values(node: ir.Node) -> list[ir.Value]:
    """What the bodies of a node read."""
    bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return [v for body in bodies for n in body.all_nodes() for v in n.inputs if v is not None]


def _bytes(operand: Operand) -> int:
    return 16 * operand.groups * operand.features**2


def _matrix_bytes(layer: _Layer) -> int:
    return _bytes(layer.after)


def _collector(layer: _Layer) -> CrossGram:
    return CrossGram(
        left=layer.before.activation.name or "",
        right=other_name(layer.after.activation),
        left_window=window(layer.before),
        right_window=window(layer.after),
    )


def _solve(layer: _Layer, entry: SiteEntry, sums: CrossSums) -> tuple[Encoded, NDArray[np.float64]]:
    """Codes of the fitted weight, and the shift of the bias [N] that restores the mean."""
    target = layer.before.matrix(read_array)
    groups, rows = layer.before.groups, max(sums.rows, 1)
    fitted = np.empty_like(target)
    for group, part in enumerate(_parts(len(target), groups)):
        fitted[part], _ = refit(
            target[part], target[part], sums.gram[group], sums.cross[group],
            sums.left[group], sums.right[group], sums.rows, _DAMP,
        )  # fmt: skip
    result = encode_by(entry.method, fitted, entry.weight, sums.gram / rows, search=entry.search)
    shift = np.zeros(len(target))
    decoded = result.decode()
    for group, part in enumerate(_parts(len(target), groups)):
        shift[part] = target[part] @ sums.left[group] - decoded[part] @ sums.right[group]
    return result, shift / rows


def _parts(rows: int, groups: int) -> Sequence[slice]:
    step = rows // groups
    return [slice(g * step, (g + 1) * step) for g in range(groups)]


def _store_matrix(site: Site, matrix: NDArray[np.float32]) -> None:
    """Replace the stored tensor of a site whose operand it is, up to transposition."""
    transposed = site.uses[0].transposed and len(site.shape) == 2
    array = (matrix.T if transposed else matrix).reshape(site.shape)
    for step in reversed(site.weight.steps):
        if step.op_type == "Transpose":
            perm = step.attributes.get("perm")
            order = perm.as_ints() if perm is not None else range(array.ndim)[::-1]
            array = array.transpose(np.argsort(order))
    dtype = site.weight.tensor.dtype
    values = np.ascontiguousarray(array, dtype.numpy())
    replace_stored(site.weight.source, ir.tensor(values, dtype=dtype, name=site.name))
