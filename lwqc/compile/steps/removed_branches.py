"""Executes the removal of branches, and lets what is left make up for them.

Compensation of a removed branch f of y = x + f(x), tried branch after branch in topological order
on what the smaller model computes by then:

`mean`: f becomes its mean output over the data.
`linear`: the last linear layer of the branch before is refitted by least squares, so that its own
inputs predict the missing part of y. That layer keeps its size, so the model gains none. It needs
the branch before to end in that layer and its bias, and the sum behind it to be read by nothing
else; where that is not so, the mean is tried.

Either is kept only where it brings the model's outputs closer: the mean of a branch with a few
enormous outputs is worse than nothing. Constants are folded into the bias of the layer before
where it has one. ReplaceMe (arXiv 2505.02819) fits a map of the layer's outputs instead, of which
the refit is the general form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.losses import outputs_error
from lwqc.compile.steps.reconstruct import add_to_bias, window
from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.branch_kinds import feature_axis
from lwqc.graph.branches import Branch
from lwqc.graph.consumers import bias_operand, node_name
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.model.edit import insert_before, replace_node, replace_stored
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.remove_branches import Removal, RemoveBranches, chosen_branches
from lwqc.plans.plan import Plan, RemovedBranch
from lwqc.plans.wording import amount_text, counts_text, names_text
from lwqc.quant.refit import refit
from lwqc.runtime.session import Session, statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.cross_gram import CrossGram
from lwqc.runtime.stats.moments import Moments
from lwqc.runtime.stats.patches import Window
from lwqc.runtime.stats.side_by_side import PREFIX, other_name, side_by_side

_DAMP = 1.0  # as much as the data: less fits the calibration rather than the task
_GRAM_BYTES = 4 << 30
_MISSING = "lwqc.missing"


@dataclass(frozen=True)
class RemovedBranches:
    """Work on a model without branches.

    removal: what changed. compensated: branch -> what took its place, or why nothing did.
    """

    work: Version
    removal: Removal
    compensated: Mapping[str, str] = field(default_factory=dict)


def without_branches(work: Version, remove: Sequence[RemovedBranch]) -> RemovedBranches:
    """The same work on a copy without the planned branches. Raises InputError."""
    asked = chosen_branches(work.model.graph, [r.name for r in remove if r.compensate != "none"])
    compensated = {b.name: f"nothing; {reason}" for b in asked if (reason := _unfit(b))}
    means = _means(work, [b for b in asked if b.name not in compensated])
    zeros = {name: np.zeros_like(mean) for name, mean in means.items()}
    model, removal = remove_planned(work.model, remove, zeros)
    gone = frozenset(removal.passed_through) | frozenset(removal.dropped_outputs)
    small = work.derived(model, incomparable=work.incomparable | gone)
    if means:
        linear = {r.name for r in remove if r.compensate == "linear"}
        branches = [b for b in asked if b.name in means]
        model, done = _compensated(small, work.model, branches, means, linear)
        compensated |= done
        _fold_constants(model, branches)
        small = work.derived(model, incomparable=small.incomparable)
    return RemovedBranches(small, removal, compensated)


def remove_planned(
    model: ir.Model,
    remove: Sequence[RemovedBranch],
    constants: Mapping[str, NDArray[np.float64]] | None = None,
) -> tuple[ir.Model, Removal]:
    """A copy without the planned branches, and what changed. Raises InputError.

    constants: branch -> what takes its place, of a shape that broadcasts.
    """
    keep = any(entry.keep_signature for entry in remove)
    names = [entry.name for entry in remove]
    rewrite = RemoveBranches(names, keep_signature=keep, constants=constants)
    copy = model.clone()
    rewrite(copy)
    return copy, rewrite.done


def _means(work: Version, branches: Sequence[Branch]) -> dict[str, NDArray[np.float64]]:
    """Mean output of each branch, [D] or [D, 1, 1]."""
    if not branches:
        return {}
    if not work.job.data.fit.given:
        raise InputError("what takes the place of a branch is taken from the data: give --data")
    wanted = {b.name: Moments(b.branch.name or "", feature_axis(b)) for b in branches}
    found = collect(work.model, wanted.values(), work.job.data.fit, statistics_session)
    return {b.name: _broadcast(b, found[wanted[b.name]].mean) for b in branches}


def _unfit(branch: Branch) -> str:
    """Why nothing can take a branch's place, or ""."""
    shape = branch.branch.shape
    if not branch.alone or branch.add.op_type != "Add":
        return "several branches join the stream at once"
    if shape is None or not isinstance(shape[feature_axis(branch)], int):
        return "the model does not say which of its axes are features"
    return ""


def _broadcast(branch: Branch, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape a vector of features so that it is added to them."""
    axis, shape = feature_axis(branch), branch.branch.shape
    assert shape is not None  # or else there were no moments
    behind = 0 if axis == -1 else shape.rank() - axis - 1
    return vector.reshape(-1, *[1] * behind)


def _compensated(
    small: Version,
    original: ir.Model,
    branches: Sequence[Branch],
    means: Mapping[str, NDArray[np.float64]],
    linear: Collection[str],
) -> tuple[ir.Model, dict[str, str]]:
    """The smaller model with all that brings its outputs closer; what came of each branch."""
    found: dict[str, str] = {}
    order = {node: i for i, node in enumerate(original.graph)}
    branches = sorted(branches, key=lambda b: order[b.add])
    report = small.job.report("compensation")
    model, least = small.model, _error(small, small.model)
    for done, branch in enumerate(branches, 1):
        reasons: list[str] = []
        for how in ("linear", "mean") if branch.name in linear else ("mean",):
            trial = model.clone()
            place = _place(trial.graph, branch)
            if place is None:
                reasons.append("it went with another branch")
                break
            if how == "mean":
                _shift_constant(place, means[branch.name])
            else:
                carrier = _carrier(place)
                if isinstance(carrier, str):
                    reasons.append(carrier)
                    continue
                how = _refit(small, original, trial, branch, place, carrier)
            error = _error(small, trial)
            if error < least:
                model, least = trial, error
                found[branch.name] = "; ".join([how, *reasons])
                break
            reasons.append(f"{how.split(',')[0]} brings the outputs no closer")
        found.setdefault(branch.name, "; ".join(["nothing", *reasons]))
        report(done, len(branches))
    return model, found


def _error(work: Version, model: ir.Model) -> float:
    return outputs_error(work, Session(model, label="compensated model"))


def _place(graph: ir.Graph, branch: Branch) -> ir.Node | None:
    """The sum of the smaller model that has a constant where the branch was, if it is left."""
    name = branch.add.outputs[0].name
    return next((node for node in graph if node.outputs[0].name == name), None)


def _carrier(place: ir.Node) -> Operand | str:
    """The linear layer whose output is last added to the stream before; or why there is none."""
    value = _stream(place)
    while True:
        if not _read_once(value):
            return f"{value.name} is also read elsewhere"
        before = value.producer()
        if before is None or before.op_type != "Add":
            made = "an input" if before is None else before.op_type
            return f"the stream comes from {made}, not from a layer that is added to it"
        if not any(stored_tensor(v) is not None for v in before.inputs):
            break
        value = _stream(before)
    layers = [found for v in before.inputs if (found := _ending(v)) is not None]
    if len(layers) != 1:
        return f"no branch before ends in a linear layer at {node_name(before)}"
    operand = layers[0]
    if operand.groups != 1 or operand.users > 1:
        return f"{node_name(operand.node)} is grouped or shares its weight"
    if operand.features**2 * 8 > _GRAM_BYTES:
        return f"the matrices of {node_name(operand.node)} would not fit"
    return operand


def _stream(add: ir.Node) -> ir.Value:
    """The operand of a sum that is computed."""
    return _computed(add)[0]


def _computed(add: ir.Node) -> list[ir.Value]:
    return [v for v in add.inputs if v is not None and stored_tensor(v) is None]


def _ending(value: ir.Value | None) -> Operand | None:
    """The linear layer that a value comes out of, maybe through its bias."""
    node = value.producer() if value is not None and _read_once(value) else None
    if node is not None and node.op_type == "Add":
        computed = [v for v in node.inputs if stored_tensor(v) is None]
        node = computed[0].producer() if len(computed) == 1 and computed[0] else None
    if node is None or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    operand = linear_operand(node)
    alone = _read_once(node.outputs[0])
    return operand if isinstance(operand, Operand) and alone else None


def _read_once(value: ir.Value) -> bool:
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def _refit(
    work: Version,
    original: ir.Model,
    model: ir.Model,
    branch: Branch,
    place: ir.Node,
    carrier: Operand,
) -> str:
    """Add to a layer what its inputs tell of the part of the stream that is missing."""
    both = side_by_side(original, model)
    name = place.outputs[0].name or ""
    values = {v.name: v for node in both.graph for v in node.outputs}
    wanted, present = values[name], values[PREFIX + name]
    missing = ir.Value(name=_MISSING, type=wanted.type, shape=wanted.shape)
    both.graph.append(ir.node("Sub", [wanted, present], outputs=[missing]))
    pointwise = None
    if feature_axis(branch) == 1:
        pointwise = Window(1, carrier.out, (1,) * (len(carrier.shape) - 2))
    collector = CrossGram(
        left=_MISSING,
        right=other_name(carrier.activation),
        left_window=pointwise,
        right_window=window(carrier),
    )
    sums = collect(both, [collector], work.job.data.fit, statistics_session)[collector]
    zero = np.zeros((carrier.out, carrier.features))
    more, shift = refit(
        zero, np.eye(carrier.out), sums.gram[0], sums.cross[0], sums.left[0], sums.right[0],
        sums.rows, _DAMP, True,
    )  # fmt: skip
    replace_stored(carrier.weight.source, carrier.stored(carrier.matrix(read_array) + more))
    _shift_constant(place, shift)
    return f"linear, by {node_name(carrier.node)}"


def _constant(place: ir.Node) -> ir.Value:
    """What took the branch's place."""
    return next(v for v in place.inputs if v is not None and stored_tensor(v) is not None)


def _shift_constant(place: ir.Node, shift: NDArray[np.float64]) -> None:
    value = _constant(place)
    old = np.asarray(value.const_value)
    moved = (old + shift.reshape(old.shape)).astype(old.dtype)
    replace_stored(value, ir.tensor(moved, name=value.name))


def _fold_constants(model: ir.Model, branches: Sequence[Branch]) -> None:
    """Move constants that took a branch's place into the bias of the layer before.

    Those of 0 go; where there is no such bias, the sum stays.
    """
    for place in [p for b in branches if (p := _place(model.graph, b)) is not None]:
        constant = np.asarray(_constant(place).const_value, np.float64)
        if constant.any():
            carrier = _carrier(place)
            bias = None if isinstance(carrier, str) else bias_operand(carrier.node, carrier.out)
            if bias is None:
                continue
            add_to_bias(*bias, constant.ravel())
        _bypass(place)


def _bypass(place: ir.Node) -> None:
    """Take a sum with nothing out; an output of the graph keeps its name."""
    output, stream, graph = place.outputs[0], _stream(place), place.graph
    assert isinstance(graph, ir.Graph)
    if not output.is_graph_output():
        output.replace_all_uses_with(stream)
        graph.remove(place, safe=True)
    elif stream.is_graph_output() or stream.producer() is None:
        name = f"{output.name}/stream"
        (value,) = insert_before(place, "Identity", [stream], [name])
        replace_node(place, value)
    else:
        replace_node(place, stream)


def _run(made: Made) -> Made:
    removed = without_branches(made.version, made.plan.remove)
    return made.on(removed.work, remove=removed)


def _text(plan: Plan) -> Iterator[str]:
    removed = (f"{b.name} ({b.kind})" if b.kind else b.name for b in plan.remove)
    instead: Counter[str] = Counter(b.compensate for b in plan.remove)
    yield (
        f"{len(plan.remove)} branches are removed: {names_text(removed)}; "
        f"in their place: {counts_text(instead)}"
    )


def _looks(plan: Plan) -> Iterator[Looks]:
    if any(entry.compensate != "none" for entry in plan.remove):
        yield "data"


STEP = Step(
    "remove",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.remove), "branches removed"),
    looks=_looks,
)
