"""What candidates are evaluated with: the model with its choices as inputs, and data in stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.gated_model import keep_results
from lwqc.decide.scores.channels.final_error import promote
from lwqc.decide.search.space import SearchSpace
from lwqc.decide.search.trial_model import TrialSpec, TrialTensor
from lwqc.graph.branch_kinds import branch_tree
from lwqc.model import io
from lwqc.model.names import gather_names, unique_name
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import stored_float_tensors, stored_tensor
from lwqc.passes.gate_activations import GateActivations
from lwqc.passes.gate_branches import GateBranches
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset, Feeds
from lwqc.runtime.session import has_bodies
from lwqc.runtime.stats.output_divergence import Measure

_Switches = tuple[tuple[int, str, tuple[NDArray[Any], ...]], ...]
_BATCHES, _ROWS = 8, 64  # of data, as many as it takes to have both
_SHARES = (1 / 16, 1 / 4)  # of the rows: what the first two stages look at


def trial_spec(
    model: ir.Model,
    space: SearchSpace,
    data: Dataset,
    grams: Mapping[str, NDArray[np.float64]],
    gains: Mapping[str, tuple[float, ...]],
    measure: Measure,
    weights: Mapping[str, float],
    shorter: Sequence[ir.Model] = (),
) -> TrialSpec:
    """Everything to evaluate candidates of a space with. The model is not changed.

    grams, gains: by site, see `TrialTensor`. weights: of outputs. shorter: the model with fewer
    tokens, by level.
    """
    stored = {v.name: v for v in stored_float_tensors(model.graph)}
    model, switches = _gated(model, space)
    read = {v.name for v in stored_float_tensors(model.graph)}  # by what has a result
    tensors, names = [], {}
    for part in space.stored:
        if (part.item is None and not part.cuts) or part.name not in read:
            continue
        tensor = stored_tensor(stored[part.name])
        assert tensor is not None
        names[part.name] = unique_name(model.graph, f"{part.name}/trial")
        tensors.append(
            TrialTensor(
                names[part.name],
                np.asarray(io.read_array(tensor)),
                part.cuts,
                part.item,
                part.entries,
                gains.get(part.name, (1.0,) * len(part.entries)),
                part.flipped,
                grams.get(part.name),
            )
        )
    promote(model, names)
    RemoveUnused()(model)
    batches = _with_a_small_first(model, _batches(data))
    rows = tuple(map(_rows, batches))
    return TrialSpec(
        io.to_bytes(model),
        tuple(tensors),
        space.keeps,
        switches,
        space.top,
        tuple(batches),
        rows,
        _stages(rows),
        measure,
        has_bodies(model),
        weights,
        (0 if space.tokens is None else space.tokens.item, _shorter(shorter, space, names)),
    )


def _gated(model: ir.Model, space: SearchSpace) -> tuple[ir.Model, _Switches]:
    """A copy with gates for branches and rounded activations."""
    model = model.clone()
    keep_results(model)
    gather_names(model)
    switches = _switches(model, space)
    RemoveUnused()(model)
    return model, switches


def _shorter(
    models: Sequence[ir.Model], space: SearchSpace, names: Mapping[str, str]
) -> tuple[bytes, ...]:
    """Models with fewer tokens and the inputs of the whole one, without those that they need not.

    names: stored tensor -> input.
    """
    found = []
    for whole in models:
        model, _ = _gated(whole, space)
        read = {v.name for v in stored_float_tensors(model.graph)}
        promote(model, {stored: name for stored, name in names.items() if stored in read})
        RemoveUnused()(model)
        found.append(io.to_bytes(model))
    return tuple(found)


def rounds_activation(entry: SiteEntry | None) -> bool:
    """Whether an entry has one 8-bit grid for its whole activation."""
    return entry is not None and entry.activation != "none" and entry.weight.block is None


def _switches(model: ir.Model, space: SearchSpace) -> _Switches:
    """Add gates for branches and rounded activations: item, input and its values by level.

    Branches that the model has not, as tokens are chosen by them, have none.
    """
    found: list[tuple[int, str, tuple[NDArray[Any], ...]]] = []
    known = {branch.name for branch in branch_tree(model.graph).branches}
    branches = [i for i in space.of_kind("branch") if space.items[i].name in known]
    gates = GateBranches([space.items[i].name for i in branches])
    gates(model)
    whole = gates.feeds()
    for i in branches:
        closed = gates.feeds([space.items[i].name])
        name = next(n for n in closed if closed[n] != whole[n])
        found.append((i, name, (closed[name], whole[name])))
    rounded = {s.name: s for s in space.stored if any(map(rounds_activation, s.entries))}
    rounding = GateActivations(rounded)
    rounding(model)
    for site, gate in rounding.gates.items():
        part = rounded[site]
        assert part.item is not None
        levels = tuple(np.asarray(rounds_activation(e)) for e in part.entries)
        found.append((part.item, gate, levels))
    return tuple(found)


def _batches(data: Dataset) -> list[Feeds]:
    found: list[Feeds] = []
    for feeds in counted(data, "the data that is kept"):
        found.append(feeds)
        if len(found) >= _BATCHES and sum(map(_rows, found)) >= _ROWS:
            break
    return found


def _rows(feeds: Feeds) -> int:
    """Size of the first axis; 1 where inputs do not share one."""
    sizes = {v.shape[0] if v.ndim else 1 for v in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 1


def _with_a_small_first(model: ir.Model, batches: Sequence[Feeds]) -> list[Feeds]:
    """The same data; where the first batch holds more than the first stage needs, it is divided."""
    rows, feeds = _rows(batches[0]), batches[0]
    count = max(int(sum(map(_rows, batches)) * _SHARES[0]), 1)
    if rows <= count or not _has_batch_axis(model, feeds):
        return list(batches)
    parts = [{n: v[part] for n, v in feeds.items()} for part in (slice(count), slice(count, None))]
    return [*parts, *batches[1:]]


def _has_batch_axis(model: ir.Model, feeds: Feeds) -> bool:
    """Whether the first axis of inputs and outputs is one dynamic dimension, and no other is."""
    values = [*(v for v in model.graph.inputs if v.name in feeds), *model.graph.outputs]
    shapes = [[getattr(d, "value", d) for d in v.shape or ()] for v in values]
    symbols = {shape[0] if shape else None for shape in shapes}
    symbol = symbols.pop()
    return (
        not symbols and isinstance(symbol, str) and not any(symbol in shape[1:] for shape in shapes)
    )


def _stages(rows: Sequence[int]) -> tuple[int, int, int]:
    """How many batches hold the first shares of the rows."""
    held = np.cumsum(rows)
    first, second = (int(np.searchsorted(held, share * held[-1])) + 1 for share in _SHARES)
    return min(first, len(rows)), min(second, len(rows)), len(rows)
