"""Decides which equivalence transforms a recipe means for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.steps.transforms import version
from lwqc.compile.version import Version
from lwqc.graph.groups import find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.graph.scalable import Consumer, Port, Span, find_spans
from lwqc.model import io
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.plans.plan import Transforms
from lwqc.plans.recipe import Recipe
from lwqc.quant.formats import WeightFormat
from lwqc.quant.migration import awq, channel_max, equalise, percentile, smoothquant
from lwqc.runtime.stats.moments import Moments

Vector = NDArray[np.float64]


_SEED = 0


@dataclass(frozen=True)
class Chosen:
    """Transforms, and what was left as it is, with the reason."""

    transforms: Transforms
    left: Mapping[str, str] = field(default_factory=dict)


def choose_transforms(work: Version, recipe: Recipe) -> Chosen:
    """What the recipe's `rotate` and `migrate` mean for this model."""
    left: dict[str, str] = {}
    rotations: dict[str, int] = {}
    if recipe.rotate:
        model, shapes = prepare_pruning(work.model)
        found = find_streams(find_groups(model, shapes))
        rotations = {stream.group.name: _SEED for stream in found.streams}
        left |= {fixed.name: f"not rotated: {fixed.reason}" for fixed in found.fixed}
        work = version(work, Transforms(rotations=rotations))
    scales: dict[str, tuple[float, ...]] = {}
    if recipe.migrate != "none":
        analysis = find_spans(work.model)
        left |= {s.name: f"not scaled: {s.reason}" for s in analysis.skipped}
        for name, vector in _scales(work, analysis.spans, recipe, left).items():
            scales[name] = tuple(float(v) for v in vector)
    return Chosen(Transforms(rotations=rotations, scales=scales), left)


def _scales(
    work: Version, spans: Iterable[Span], recipe: Recipe, left: dict[str, str]
) -> dict[str, Vector]:
    spans = list(spans)
    if recipe.migrate == "equalise":
        return {s.name: _equalised(s) for s in spans}
    if recipe.migrate == "awq":
        fmt = WeightFormat(recipe.bits, 32, True, "float16")
        tried = {s.name: _awq(work, s, fmt) for s in spans}
        left |= {n: f"not scaled: {why}" for n, why in tried.items() if isinstance(why, str)}
        return {n: v for n, v in tried.items() if not isinstance(v, str)}
    largest = _largest(work, spans)
    if recipe.migrate == "percentile":
        return {s.name: percentile(largest[s.name]) for s in spans}
    return {
        s.name: smoothquant(largest[s.name], _weight_max(s.consumers, s.channels)) for s in spans
    }


def _largest(work: Version, spans: Iterable[Span]) -> dict[str, Vector]:
    """Largest magnitude of each span's channels where they are read."""
    wanted = {s.name: [(c, Moments(c.activation.name or "", _axis(c))) for c in s.consumers]
              for s in spans}  # fmt: skip
    moments = list(dict.fromkeys(m for pairs in wanted.values() for _, m in pairs))
    found = work.collect(work.model, moments)
    result = {}
    for span in spans:
        largest = np.zeros(span.channels)
        for consumer, collector in wanted[span.name]:
            seen = channel_max(found[collector].absmax, consumer.features, span.channels)
            np.maximum(largest, seen, out=largest)
        result[span.name] = largest
    return result


def _axis(consumer: Consumer) -> int:
    return 1 if consumer.node.op_type == "Conv" else -1


def _weight_max(ports: Iterable[Port], count: int) -> Vector:
    found = [channel_max(_stored(p), p.channels, count) for p in ports if p.kind == "weight"]
    return np.max(found, axis=0) if found else np.zeros(count)


def _stored(port: Port) -> NDArray[np.floating]:
    return np.asarray(io.read_array(port.weight.tensor), np.float32)


def _equalised(span: Span) -> Vector:
    out, into = (_weight_max(p, span.channels) for p in (span.producers, span.consumers))
    return equalise(out, into)


def _awq(work: Version, span: Span, fmt: WeightFormat) -> Vector | str:
    """Scales of least output error of the layers that read the span; or why there are none."""
    weights, features = [], None
    for consumer in span.consumers:
        site = work.sites.get(consumer.tensor)
        if site is None or site.groups != 1:
            return f"{consumer.tensor} is read in groups or takes no format"
        if work.grams.reason(site.name):
            return f"{consumer.tensor}: {work.grams.reason(site.name)}"
        if consumer.activation is not span.consumers[0].activation:
            return "the layers that read it see different tensors"
        weights.append(np.asarray(site.matrix(io.read_array), np.float32))
        kernel = site.k // len(consumer.features)
        features = np.repeat(consumer.features, kernel)
    gram = work.grams(span.consumers[0].tensor)
    assert gram is not None
    if len({w.shape[1] for w in weights}) > 1:
        return "the layers that read it have different kernels"
    found = awq(weights, gram[0], fmt, features=features)
    return np.append(found, np.ones(span.channels - len(found)))
