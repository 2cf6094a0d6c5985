"""How little branches change the stream, from one forward pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import onnx_ir as ir

from lwqc.graph.branch_kinds import feature_axis
from lwqc.graph.branches import Branch
from lwqc.runtime.stats.branch_effect import BranchEffect, EffectSums
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.collector import Feeds, RunnerFactory
from lwqc.runtime.stats.shapes import Shapes
from lwqc.runtime.stats.void_rate import VoidRate

Units = Mapping[str, Sequence[Branch]]


def branch_effects(
    model: ir.Model, units: Units, data: Iterable[Feeds], make_runner: RunnerFactory
) -> dict[str, EffectSums]:
    """What each unit does to the stream: cosine, angle and norm ratio, means over tokens.

    units: name -> branches that follow one another: a single one, or a block. What a branch of
    several that join one stream does is measured for itself.
    """
    effects = {name: effect(branches) for name, branches in units.items()}
    found = collect(model, effects.values(), data, make_runner)
    return {name: found[effect] for name, effect in effects.items()}


def void_rates(
    model: ir.Model, units: Units, data: Iterable[Feeds], make_runner: RunnerFactory
) -> dict[str, float]:
    """Share of tokens that each unit is void for (`VoidRate`).

    Units are compared with those before them as long as the stream has as many tokens; the first
    one of each stage has rate 0.
    """
    effects = {name: effect(branches) for name, branches in units.items()}
    rates: dict[str, float] = {}
    stages = _stages(model, effects, data, make_runner)
    collectors = [VoidRate(tuple(effects[name] for name in stage)) for stage in stages]
    found = collect(model, collectors, data, make_runner)
    for stage, collector in zip(stages, collectors, strict=True):
        rates.update(zip(stage, found[collector].rates, strict=True))
    return rates


def effect(branches: Sequence[Branch]) -> BranchEffect:
    """The collector for one branch, or for a block from its first stream to its last sum."""
    first, last = branches[0], branches[-1]
    axis = feature_axis(first)
    stream = first.stream.name or ""
    if len(branches) == 1:
        return BranchEffect(stream, delta=first.branch.name or "", axis=axis)
    return BranchEffect(stream, output=last.output.name or "", axis=axis)


def _stages(
    model: ir.Model,
    effects: Mapping[str, BranchEffect],
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
) -> list[list[str]]:
    """Units in a row whose streams have the same tokens in a first run."""
    wanted = {name: Shapes(effect.stream) for name, effect in effects.items()}
    seen = collect(model, wanted.values(), islice(iter(data), 1), make_runner)
    stages: list[list[str]] = []
    latest: list[int] = []
    for name, effect in effects.items():
        tokens = list(seen[wanted[name]].last)
        del tokens[effect.axis]
        if not stages or tokens != latest:
            stages.append([])
            latest = tokens
        stages[-1].append(name)
    return stages
