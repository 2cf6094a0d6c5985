"""Decides which channels of a model go: scores, comparison between groups, budget."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc import io
from lwqc.backends.session import statistics_session
from lwqc.data import Dataset, open_data
from lwqc.errors import InputError
from lwqc.graph.groups import Group, Groups, find_groups
from lwqc.graph.pruned_cost import PrunedCost
from lwqc.graph.readers import Reader, find_readers
from lwqc.graph.shapes import named_sizes, shapes_at
from lwqc.graph.widths import width_step
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.plan import Plan, PrunedUnit, Pruning, SlicedAxis, Source
from lwqc.scores.channels.fpgm import fpgm
from lwqc.scores.channels.magnitude import l1, l2
from lwqc.scores.channels.obs import Layer, layers, obs_ranking
from lwqc.scores.channels.ranking import Normaliser, Ranking, aggregated, normalised
from lwqc.scores.channels.wanda import wanda
from lwqc.search.channel_budget import (
    Candidate,
    Keep,
    global_budget,
    local_budget,
    local_ratio,
)
from lwqc.stats.collect import collect
from lwqc.stats.collector import Feeds
from lwqc.stats.gram import Gram
from lwqc.stats.patches import conv_window
from lwqc.workspace import Workspace

Score = Literal["l1", "l2", "fpgm", "wanda", "obs"]
Compensate = Literal["none", "bias", "refit"]
_WEIGHTS_ONLY = {"l1": l1, "l2": l2, "fpgm": fpgm}
_MAX_FEATURES = 6144  # a Gram matrix of more takes over 300 MB
_NEEDS_DATA = ("wanda", "obs")
_RANDOM_BATCHES = 32


@dataclass(frozen=True)
class PruneOptions:
    """What to remove.

    ratio: share of the multiply-accumulates (`by` macs), of the weights (parameters) or of the
    channels of every group (channels) that goes. score: criterion within a group. normalise: how
    groups are compared. scope: `global` takes the cheapest channels of the whole model, `local`
    the same share of every group. per_cost: compare by price per MAC (or parameter) saved.
    round_to: widths stay multiples of it where a group allows. min_channels: each group keeps at
    least that many. max_ratio: largest share that one group loses under `global`.
    overrides: group name or pattern -> share that goes. statistics: also prune groups that a
    normalisation or pooling mixes. compensate: see `plan.Pruning`. damp: of the refit and of OBS,
    relative to the mean diagonal of the Gram matrix.
    """

    ratio: float
    by: Literal["macs", "parameters", "channels"] = "macs"
    score: Score = "l2"
    normalise: Normaliser = "mean"
    scope: Literal["global", "local"] = "global"
    per_cost: bool = False
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 0.9
    overrides: Mapping[str, float] = field(default_factory=dict)
    statistics: bool = False
    compensate: Compensate = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"
    resizable_outputs: tuple[str, ...] = ()
    recipe: str = ""

    def __post_init__(self) -> None:
        """Raises InputError for values out of range."""
        for name, value in (("ratio", self.ratio), *self.overrides.items()):
            if not 0 <= value < 1:
                raise InputError(f"{name} {value:g}: expected a share from 0 to below 1")
        if self.round_to < 1 or self.min_channels < 1:
            raise InputError("--round-to and --min-channels must be at least 1")

    @property
    def needs_data(self) -> bool:
        """Whether statistics of forward runs are used."""
        return self.score in _NEEDS_DATA or self.compensate != "none" or self.batch_norm


class Prunable:
    """A model with its groups, ready to be scored. The model is a prepared copy."""

    def __init__(self, model: ir.Model, resizable_outputs: tuple[str, ...] = ()) -> None:
        """Raises InputError for an output name that the model lacks."""
        known = {v.name for v in model.graph.outputs}
        for name in resizable_outputs:
            if name not in known:
                raise InputError(f"{name}: the model has no such output")
        self.model, self.shapes = prepare_pruning(model)
        self.resizable_outputs = resizable_outputs

    @cached_property
    def groups(self) -> Groups:
        """All groups."""
        return find_groups(self.model, self.shapes, resizable_outputs=self.resizable_outputs)

    @cached_property
    def readers(self) -> list[Reader]:
        """Layers that read the groups."""
        return find_readers(self.groups)

    def cost(self, inputs: Mapping[str, NDArray[np.generic]]) -> PrunedCost:
        """MACs and parameters for inputs like these."""
        sizes = {name: array.shape for name, array in inputs.items()}
        return PrunedCost(self.groups, shapes_at(self.model, sizes))


@dataclass(frozen=True)
class Decision:
    """A pruning plan and what it leaves, in the unit of the ratio. limit: what was asked for.

    whole: groups that were not touched and why.
    """

    plan: Plan
    keep: Keep
    before: int
    after: int
    limit: float
    whole: Mapping[str, str]


def decide(work: Workspace, options: PruneOptions, prunable: Prunable | None = None) -> Decision:
    """Choose channels. Raises InputError, with the reasons, when nothing can be pruned."""
    prunable = prunable or Prunable(work.model, options.resizable_outputs)
    groups = prunable.groups
    if not len(groups):
        raise InputError(f"{work.name}: nothing can be pruned: {_frozen_reasons(groups)}")
    fixed = _overrides(groups, options.overrides)
    chosen, whole = _chosen(groups, options, fixed)
    rankings = rank(work, prunable, chosen, options)
    cost = prunable.cost(work.data.first())
    measure = cost.parameters if options.by == "parameters" else cost.macs
    before = measure({})
    candidates = [
        _candidate(
            groups.by_name[n], r, options, _saved(measure, before, groups.by_name[n], options)
        )
        for n, r in rankings.items()
    ]
    keep = _allocate(candidates, measure, before, options, fixed)
    after = measure(keep)
    for candidate in candidates:
        if candidate.name not in keep:
            whole.setdefault(candidate.name, "all its channels matter more, or rounding keeps them")
    limit = before if options.by == "channels" else before * (1 - options.ratio)
    plan = Plan(
        source=Source(name=work.name),
        target=work.target.name,
        recipe=options.recipe,
        prune=Pruning(
            units=tuple(_units(groups, keep)),
            compensate=options.compensate,
            batch_norm=options.batch_norm,
            calibration=options.calibration,
            resizable_outputs=options.resizable_outputs,
        ),
    )
    return Decision(plan, keep, before, after, limit, whole)


def _frozen_reasons(groups: Groups) -> str:
    reasons = dict.fromkeys(axis.reason for axis in groups.frozen)
    return "; ".join(list(reasons)[:3]) or "it has no weights"


def _overrides(groups: Groups, wanted: Mapping[str, float]) -> dict[str, int]:
    fixed = {}
    for pattern, ratio in wanted.items():
        found = [g for g in groups if g.name == pattern or fnmatch.fnmatchcase(g.name, pattern)]
        if not found:
            raise InputError(f"{pattern}: the model has no such group; see lwqc inspect --groups")
        fixed.update({g.name: round(g.size * ratio) for g in found})
    return fixed


def _chosen(
    groups: Groups, options: PruneOptions, fixed: Mapping[str, int]
) -> tuple[list[Group], dict[str, str]]:
    """Groups that may lose channels, and why the others may not."""
    chosen, whole = [], {}
    for group in groups:
        step = width_step(group, options.round_to)
        if group.name in fixed:
            chosen.append(group)
        elif group.statistics and not options.statistics:
            whole[group.name] = "a normalisation mixes its channels; --statistics prunes it too"
        elif group.size <= max(step, options.min_channels):
            whole[group.name] = f"has only {group.size} channels, kept in steps of {step}"
        else:
            chosen.append(group)
    return chosen, whole


def _candidate(group: Group, ranking: Ranking, options: PruneOptions, saved: float) -> Candidate:
    least = options.min_channels
    if options.scope == "global" and options.by != "channels":
        least = max(least, int(np.ceil(group.size * (1 - options.max_ratio))))
    step = width_step(group, options.round_to)
    return Candidate(group.name, ranking.order, ranking.cost / saved, step, least)


def _saved(
    measure: Callable[[Keep], int], before: int, group: Group, options: PruneOptions
) -> float:
    """Share of the total that one channel saves, for prices per cost; else 1."""
    if not options.per_cost or options.by == "channels":
        return 1.0
    half = np.ones(group.size, np.bool_)
    half[: max(1, group.size // 2)] = False
    gone = before - measure({group.name: half})
    return max(gone / before, 1e-12) / max(1, group.size // 2)


def _allocate(
    candidates: list[Candidate],
    measure: Callable[[Keep], int],
    before: int,
    options: PruneOptions,
    fixed: Mapping[str, int],
) -> Keep:
    if options.by == "channels":
        return local_ratio(candidates, options.ratio, fixed)
    if options.ratio == 0:
        return local_ratio(candidates, 0.0, fixed)
    allocate = global_budget if options.scope == "global" else local_budget
    return allocate(candidates, measure, before * (1 - options.ratio), fixed)


def rank(
    work: Workspace, prunable: Prunable, chosen: list[Group], options: PruneOptions
) -> dict[str, Ranking]:
    """Order the channels of each group, by name."""
    if options.score in _WEIGHTS_ONLY:
        saliency = _WEIGHTS_ONLY[options.score]
        found = {g.name: aggregated(g, io.read_array, saliency) for g in chosen}
        return {n: Ranking.of(normalised(v, options.normalise)) for n, v in found.items()}
    needed = _readers_of(prunable, chosen)
    data = calibration(work, options.calibration)
    grams = _grams(data, prunable, [r for readers in needed.values() for r in readers])
    result = {}
    report = work.report("scores")
    for done, group in enumerate(chosen):
        pairs = [(r, *grams[r]) for r in needed[group.name] if r in grams]
        result[group.name] = _ranked(group, pairs, options)
        report(done + 1, len(chosen))
    return result


def calibration(work: Workspace, kind: Literal["data", "random"]) -> Dataset:
    """The data that statistics are taken on: the caller's, or N(0, 1) inputs with seed 0."""
    if kind == "data" or work.data.kind == "random":
        return work.data
    shapes = {n: a.shape for n, a in work.data.first().items()}
    return open_data(
        f"random:{_RANDOM_BATCHES}", work.model, shapes=named_sizes(work.model, shapes)
    )


def _ranked(
    group: Group, pairs: list[tuple[Reader, NDArray[np.float64], int]], options: PruneOptions
) -> Ranking:
    if options.score == "obs" and pairs:
        parts: list[Layer] = []
        for reader, gram, rows in pairs:
            weight = reader.operand.matrix(io.read_array)
            parts += layers(weight, gram, reader.owners(group), rows)
        return obs_ranking(parts, group.size)
    norms = [(r, np.sqrt(np.diagonal(g, axis1=1, axis2=2) / max(rows, 1))) for r, g, rows in pairs]
    found = wanda(group, norms, io.read_array)
    if found is None:  # no layer reads it: what it weighs is all there is to go by
        found = aggregated(group, io.read_array, l2)
        return Ranking.of(normalised(found, "sum"))
    return Ranking.of(normalised(found, options.normalise))


def _readers_of(prunable: Prunable, chosen: list[Group]) -> dict[str, list[Reader]]:
    """Layers in whose input features a group takes part."""
    return {
        g.name: [
            r
            for r in prunable.readers
            if g.factor in set(r.features.leaves()) and r.operand.features <= _MAX_FEATURES
        ]
        for g in chosen
    }


def _grams(
    data: Iterable[Feeds], prunable: Prunable, readers: list[Reader]
) -> dict[Reader, tuple[NDArray[np.float64], int]]:
    """Gram matrix [convolution groups, features, features] of every reader's input, and rows."""
    collectors = {reader: _gram(reader) for reader in dict.fromkeys(readers)}
    if not collectors:
        return {}
    found = collect(prunable.model, list(collectors.values()), data, statistics_session)
    result = {}
    for reader, collector in collectors.items():
        total = found[collector]
        matrix = total.matrix if total.matrix.ndim == 3 else total.matrix[None]
        result[reader] = (matrix, total.rows)
    return result


def _gram(reader: Reader) -> Gram:
    operand = reader.operand
    name = operand.activation.name or ""
    if operand.node.op_type == "Conv":
        return Gram(name, conv_window(operand.node, operand.shape))
    return Gram(name)


def _units(groups: Groups, keep: Keep) -> list[PrunedUnit]:
    units = []
    for name, mask in keep.items():
        group = groups.by_name[name]
        for index in np.flatnonzero(~mask):
            slices: dict[tuple[str, int], tuple[int, ...]] = {}
            for occurrence, gone in group.slices(int(index)):
                slices[(occurrence.name, occurrence.axis)] = tuple(int(i) for i in gone)
            units.append(
                PrunedUnit(
                    group=name,
                    index=int(index),
                    slices=tuple(
                        SlicedAxis(initializer=n, axis=a, indices=i) for (n, a), i in slices.items()
                    ),
                )
            )
    return units
