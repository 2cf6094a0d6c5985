"""Orders the channels of each group by a criterion, on the statistics that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import length_hint

import numpy as np

from lwqc.compile.prunable import Prunable, calibration
from lwqc.compile.version import Version
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.channels.final_error import FinalError, without
from lwqc.decide.scores.channels.gates import Gates
from lwqc.decide.scores.channels.gradients import Gradients, is_differentiable
from lwqc.decide.scores.channels.magnitude import l2
from lwqc.decide.scores.channels.ranking import Normaliser, Ranking, aggregated, normalised
from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts, Observed, channel_score
from lwqc.errors import InputError
from lwqc.graph.groups import Group
from lwqc.graph.readers import Reader
from lwqc.model import io
from lwqc.model.extensions import CHANNEL_SCORES
from lwqc.runtime.data import Dataset
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.collector import Feeds
from lwqc.runtime.stats.gram import Gram
from lwqc.runtime.stats.patches import conv_window

_MAX_FEATURES = 6144  # a Gram matrix of more takes over 300 MB
_TRIAL_BATCHES = 2  # enough to compare groups
_TRIAL_SHARE = 0.25


def rank(
    work: Version, prunable: Prunable, chosen: list[Group], options: PruneOptions
) -> dict[str, Ranking]:
    """Order the channels of each group, by name. Raises InputError for what a score gave wrong."""
    score = channel_score(options.score)
    if score.looks_at == "weights":
        alone = {g.name: _ranking(score, GroupFacts(g, io.read_array), options) for g in chosen}
        return _with_the_rest(chosen, _known(alone))
    if score.looks_at == "gradients":
        return _by_gradients(work, prunable, chosen, options)
    needed = _readers_of(prunable, chosen)
    if score.looks_at == "outputs":
        return _perturbed(work, prunable, chosen, needed, options)
    data = calibration(work, options.calibration)
    grams = _grams(
        _reported(data, work.job.report("statistics")),
        prunable,
        [r for readers in needed.values() for r in readers],
    )
    seen = {n: [grams[r] for r in rs if r in grams] for n, rs in needed.items()}
    found: dict[str, Ranking | None] = {}
    report = work.job.report("scores")
    for done, group in enumerate(chosen):
        found[group.name] = _from_inputs(score, group, needed, seen[group.name], options)
        report(done + 1, len(chosen))
    ranked = _known(found)
    if options.normalise == "output":
        ranked = _scaled_to_outputs(work, prunable, chosen, seen, ranked, data)
    return _with_the_rest(chosen, ranked)


def _perturbed(
    work: Version,
    prunable: Prunable,
    chosen: list[Group],
    needed: Mapping[str, list[Reader]],
    options: PruneOptions,
) -> dict[str, Ranking]:
    operands = dict.fromkeys(r.operand for found in needed.values() for r in found)
    data = calibration(work, options.calibration).limited(_TRIAL_BATCHES)
    trial = FinalError(prunable.model, operands, data, statistics_session, io.read_array)
    score = channel_score(options.score)
    loss = None if options.loss is None else partial(trial.loss, loss=options.loss)
    gradients = None
    if options.loss is not None and is_differentiable(options.loss):
        loss = None
        gradients = Gradients(prunable.model, data, options.loss, label=work.name)
    result: dict[str, Ranking | None] = {}
    report = work.job.report("scores")
    for done, group in enumerate(chosen):
        readers = needed[group.name]
        if not readers:
            continue
        facts = GroupFacts(group, io.read_array, readers, (), trial, loss, gradients)
        result[group.name] = _ranking(score, facts, options)
        report(done + 1, len(chosen))
    return _with_the_rest(chosen, _known(result))


def _by_gradients(
    work: Version, prunable: Prunable, chosen: list[Group], options: PruneOptions
) -> dict[str, Ranking]:
    score, needed = channel_score(options.score), _readers_of(prunable, chosen, math.inf)
    gradients = Gradients(
        prunable.model,
        calibration(work, options.calibration),
        options.loss,
        label=work.name,
        gates={g.name: Gates(g, needed[g.name], io.read_array) for g in chosen},
        untrained=True,
    )
    found: dict[str, Ranking | None] = {}
    report = work.job.report("scores")
    for done, group in enumerate(chosen):
        facts = GroupFacts(group, io.read_array, needed[group.name], gradients=gradients)
        found[group.name] = _ranking(score, facts, options)
        report(done + 1, len(chosen))
    return _with_the_rest(chosen, _known(found))


def _known(found: Mapping[str, Ranking | None]) -> dict[str, Ranking]:
    return {name: ranking for name, ranking in found.items() if ranking is not None}


def _ranking(score: ChannelScore, facts: GroupFacts, options: PruneOptions) -> Ranking | None:
    """What a score says of a group, comparable between groups; None where it says nothing."""
    where = f" on group {facts.group.name}"
    with CHANNEL_SCORES.running(options.score, where):
        found = score.importance(facts)
        if found is None:
            return None
        values = np.asarray(found.cost if isinstance(found, Ranking) else found, np.float64)
    if values.shape != (facts.group.size,):
        raise InputError(
            f"{CHANNEL_SCORES.told(options.score)}{where}: gave the shape {values.shape}; "
            f"expected ({facts.group.size},), one number for each channel"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"{CHANNEL_SCORES.told(options.score)}{where}: "
            "gave a number that is not finite; check the weights, the data and the loss"
        )
    if isinstance(found, Ranking):
        return found
    return Ranking.of(normalised(values, _between(options)))


def _with_the_rest(chosen: list[Group], found: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Groups that no observed layer reads go by magnitude, priced like the typical other group."""
    means = [r.cost.mean() for r in found.values()]
    typical = max(float(np.median(means)) if means else 1.0, 0.0)
    result = {}
    for group in chosen:
        if group.name in found:
            result[group.name] = found[group.name]
        else:
            ranking = Ranking.of(normalised(aggregated(group, io.read_array, l2), "mean"))
            result[group.name] = Ranking(ranking.order, ranking.cost * typical)
    return result


def _scaled_to_outputs(
    work: Version,
    prunable: Prunable,
    chosen: list[Group],
    seen: Mapping[str, list[Observed]],
    rankings: Mapping[str, Ranking],
    data: Dataset,
) -> dict[str, Ranking]:
    """Prices in units of the error at the model's outputs.

    A share of each group's channels is removed on trial, the layers that read it making up for
    them; what the outputs lose is what that share costs.
    """
    operands = dict.fromkeys(o.reader.operand for found in seen.values() for o in found)
    measure = FinalError(
        prunable.model, operands, data.limited(_TRIAL_BATCHES), statistics_session, io.read_array
    )
    result = {}
    report = work.job.report("sensitivity")
    for done, group in enumerate(g for g in chosen if g.name in rankings):
        ranking = rankings[group.name]
        count = max(1, round(group.size * _TRIAL_SHARE))
        removed = ranking.order[:count]
        replaced = {
            o.reader.operand: without(
                o.reader.operand.matrix(io.read_array),
                o.gram,
                o.reader.owners(group),
                removed.tolist(),
            )
            for o in seen[group.name]
        }
        scale = measure(replaced) / max(float(ranking.cost[:count].sum()), 1e-12)
        result[group.name] = Ranking(ranking.order, ranking.cost * scale)
        report(done + 1, len(rankings))
    return result


def _between(options: PruneOptions) -> Normaliser:
    return "none" if options.normalise == "output" else options.normalise


def _from_inputs(
    score: ChannelScore,
    group: Group,
    needed: Mapping[str, list[Reader]],
    seen: list[Observed],
    options: PruneOptions,
) -> Ranking | None:
    """None when no layer whose input was observed reads the group."""
    if not seen:
        return None
    for one in seen:
        operand = one.reader.operand
        for array, what in ((operand.matrix(io.read_array), "weight"), (one.gram, "input")):
            if not np.isfinite(array).all():
                name = operand.weight.name
                raise InputError(f"the {what} of the layer with {name} is not finite; check it")
    return _ranking(score, GroupFacts(group, io.read_array, needed[group.name], seen), options)


def _readers_of(
    prunable: Prunable, chosen: list[Group], widest: float = _MAX_FEATURES
) -> dict[str, list[Reader]]:
    """Layers in whose input features a group takes part, without those of more features."""
    return {
        g.name: [
            r
            for r in prunable.readers
            if g.factor in set(r.features.leaves()) and r.operand.features <= widest
        ]
        for g in chosen
    }


def _grams(
    data: Iterable[Feeds], prunable: Prunable, readers: list[Reader]
) -> dict[Reader, Observed]:
    """What each weight meets; the first of its readers with the same features stands for them."""
    alike: dict[tuple[object, ...], list[Reader]] = {}
    for reader in dict.fromkeys(readers):
        alike.setdefault(_what_is_read(reader), []).append(reader)
    collectors = {
        together[0]: gram
        for together in alike.values()
        if (gram := Gram.together(map(_gram, together))) is not None
    }
    if not collectors:
        return {}
    found = collect(prunable.model, list(collectors.values()), data, statistics_session)
    result = {}
    for together in alike.values():
        total = found[collectors[together[0]]]
        matrix = total.matrix if total.matrix.ndim == 3 else total.matrix[None]
        result[together[0]] = Observed(together[0], matrix, total.rows, len(together))
    return result


def _reported(data: Dataset, report: Callable[[int, int], None]) -> Iterator[Feeds]:
    total = length_hint(data, 0)
    for done, feeds in enumerate(data):
        if total:
            report(done, total)
        yield feeds


def _what_is_read(reader: Reader) -> tuple[object, ...]:
    """Alike where one matrix [out, features] must do for the rows of several layers."""
    operand = reader.operand
    steps = tuple(step.name or step.outputs[0].name for step in operand.weight.steps)
    own = (operand.weight.name, steps, operand.out_axis, operand.groups)
    return (*own, reader.features, reader.groups, reader.kernel)


def _gram(reader: Reader) -> Gram:
    operand = reader.operand
    name = operand.activation.name or ""
    if operand.node.op_type == "Conv":
        return Gram(name, conv_window(operand.node, operand.shape))
    return Gram(name, features=operand.features)
