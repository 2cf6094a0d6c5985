"""Orders the channels of each group by a criterion, on the statistics that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.prunable import Prunable, calibration
from lwqc.compile.workspace import Workspace
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.channels.final_error import FinalError, without
from lwqc.decide.scores.channels.fpgm import fpgm
from lwqc.decide.scores.channels.magnitude import l1, l2
from lwqc.decide.scores.channels.obs import Layer, layers, obs_ranking
from lwqc.decide.scores.channels.perturbation import ablation, taylor
from lwqc.decide.scores.channels.ranking import Normaliser, Ranking, aggregated, normalised
from lwqc.decide.scores.channels.wanda import wanda
from lwqc.errors import InputError
from lwqc.graph.groups import Group
from lwqc.graph.readers import Reader
from lwqc.model import io
from lwqc.runtime.data import Dataset
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.collector import Feeds
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.patches import conv_window

_WEIGHTS_ONLY = {"l1": l1, "l2": l2, "fpgm": fpgm}
_MAX_FEATURES = 6144  # a Gram matrix of more takes over 300 MB
_TRIAL_BATCHES = 2  # enough to compare groups
_TRIAL_SHARE = 0.25


def rank(
    work: Workspace, prunable: Prunable, chosen: list[Group], options: PruneOptions
) -> dict[str, Ranking]:
    """Order the channels of each group, by name."""
    if options.score in _WEIGHTS_ONLY:
        saliency = _WEIGHTS_ONLY[options.score]
        found = {g.name: aggregated(g, io.read_array, saliency) for g in chosen}
        return {n: Ranking.of(normalised(v, _between(options))) for n, v in found.items()}
    needed = _readers_of(prunable, chosen)
    if options.score in ("ablation", "taylor"):
        return _perturbed(work, prunable, chosen, needed, options)
    data = calibration(work, options.calibration)
    grams = _grams(data, prunable, [r for readers in needed.values() for r in readers])
    pairs = {n: [(r, *grams[r]) for r in rs if r in grams] for n, rs in needed.items()}
    ranked: dict[str, Ranking] = {}
    report = work.report("scores")
    for done, group in enumerate(chosen):
        order = _ranked(group, pairs[group.name], options)
        if order is not None:
            ranked[group.name] = order
        report(done + 1, len(chosen))
    if options.normalise == "output":
        ranked = _scaled_to_outputs(work, prunable, chosen, pairs, ranked, data)
    return _with_the_rest(chosen, ranked)


def _perturbed(
    work: Workspace,
    prunable: Prunable,
    chosen: list[Group],
    needed: Mapping[str, list[Reader]],
    options: PruneOptions,
) -> dict[str, Ranking]:
    operands = dict.fromkeys(r.operand for found in needed.values() for r in found)
    data = calibration(work, options.calibration).limited(_TRIAL_BATCHES)
    trial = FinalError(prunable.model, operands, data, statistics_session, io.read_array)
    loss = options.loss
    result = {}
    report = work.report("scores")
    for done, group in enumerate(chosen):
        readers = needed[group.name]
        if not readers:
            continue
        if options.score == "taylor":
            assert loss is not None
            found = taylor(group, readers, partial(trial.loss, loss=loss), io.read_array)
        else:
            found = ablation(group, readers, trial, io.read_array)
        result[group.name] = Ranking.of(normalised(found, _between(options)))
        report(done + 1, len(chosen))
    return _with_the_rest(chosen, result)


def _with_the_rest(chosen: list[Group], found: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Groups that no observed layer reads go by magnitude, priced like the typical other group."""
    means = [r.cost.mean() for r in found.values()]
    typical = float(np.median(means)) if means else 1.0
    result = {}
    for group in chosen:
        if group.name in found:
            result[group.name] = found[group.name]
        else:
            magnitude = normalised(aggregated(group, io.read_array, l2), "mean")
            result[group.name] = Ranking.of(magnitude * typical)
    return result


def _scaled_to_outputs(
    work: Workspace,
    prunable: Prunable,
    chosen: list[Group],
    pairs: Mapping[str, list[tuple[Reader, NDArray[np.float64], int]]],
    rankings: Mapping[str, Ranking],
    data: Dataset,
) -> dict[str, Ranking]:
    """Prices in units of the error at the model's outputs.

    A share of each group's channels is removed on trial, the layers that read it making up for
    them; what the outputs lose is what that share costs.
    """
    operands = dict.fromkeys(r.operand for found in pairs.values() for r, _, _ in found)
    measure = FinalError(
        prunable.model, operands, data.limited(_TRIAL_BATCHES), statistics_session, io.read_array
    )
    result = {}
    report = work.report("sensitivity")
    for done, group in enumerate(g for g in chosen if g.name in rankings):
        ranking = rankings[group.name]
        count = max(1, round(group.size * _TRIAL_SHARE))
        removed = ranking.order[:count]
        replaced = {
            r.operand: without(
                r.operand.matrix(io.read_array), gram, r.owners(group), removed.tolist()
            )
            for r, gram, _ in pairs[group.name]
        }
        scale = measure(replaced) / max(float(ranking.cost[:count].sum()), 1e-12)
        result[group.name] = Ranking(ranking.order, ranking.cost * scale)
        report(done + 1, len(rankings))
    return result


def _between(options: PruneOptions) -> Normaliser:
    return "none" if options.normalise == "output" else options.normalise


def _ranked(
    group: Group, pairs: list[tuple[Reader, NDArray[np.float64], int]], options: PruneOptions
) -> Ranking | None:
    """None when no layer whose input was observed reads the group."""
    if not pairs:
        return None
    for reader, gram, _ in pairs:
        for array, what in ((reader.operand.matrix(io.read_array), "weight"), (gram, "input")):
            if not np.isfinite(array).all():
                name = reader.operand.weight.name
                raise InputError(f"the {what} of the layer with {name} is not finite; check it")
    if options.score == "obs":
        parts: list[Layer] = []
        for reader, gram, rows in pairs:
            weight = reader.operand.matrix(io.read_array)
            parts += layers(weight, gram, reader.owners(group), rows)
        return obs_ranking(parts, group.size)
    norms = [(r, np.sqrt(np.diagonal(g, axis1=1, axis2=2) / max(rows, 1))) for r, g, rows in pairs]
    found = wanda(group, norms, io.read_array)
    if found is None:
        return None
    return Ranking.of(normalised(found, _between(options)))


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
