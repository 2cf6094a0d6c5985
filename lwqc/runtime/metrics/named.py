"""Metrics by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.runtime.data import Dataset
from lwqc.runtime.measure import Metric, load_metric
from lwqc.runtime.metrics.detections import (
    DetectionAgreement,
    MeanAveragePrecision,
    PrecisionAtHalf,
)
from lwqc.runtime.metrics.embeddings import EmbeddingRecall
from lwqc.runtime.metrics.perplexity import Perplexity
from lwqc.runtime.metrics.task import Run, Task
from lwqc.runtime.metrics.top1 import Top1
from lwqc.runtime.metrics.transcripts import CharacterError, WordError


class Named(Protocol):
    """A metric of a task. against: what answers are compared with, for readers."""

    name: str
    higher_is_better: bool
    against: str

    def __call__(self, run: Run) -> float:
        """Its value for a model."""


NAMED: dict[str, Callable[[Task], Named]] = {
    "top1": Top1,
    "detection-agreement": DetectionAgreement,
    "map": MeanAveragePrecision,
    "map50": PrecisionAtHalf,
    "character-error": CharacterError,
    "word-error": WordError,
    "perplexity": Perplexity,
    "embedding-recall": EmbeddingRecall,
}


def metric_of(
    spec: str | Callable[..., float] | None, model: ir.Model, data: Dataset
) -> Metric | None:
    """A metric as it was given: `top1`, `top1=OUTPUT`, `map,score=0.2`, `module:function` or a
    callable.

    Raises InputError for a name that is none, and for data that it cannot be taken on.
    """
    if spec is None or isinstance(spec, Metric):
        return spec
    if not isinstance(spec, str):
        better = getattr(spec, "higher_is_better", True)
        return Metric(getattr(spec, "__name__", "metric"), spec, better)
    name, output, options = _parts(spec)
    if name in NAMED:
        found = NAMED[name](Task(model, data, output, options))
        return Metric(f"{spec} against {found.against}", found, found.higher_is_better, ours=True)
    if ":" not in spec:
        known = expected(name, list(NAMED))
        raise InputError(f"{spec}: is no metric; module:function, or {known}")
    return load_metric(spec)


def _parts(spec: str) -> tuple[str, str, dict[str, str]]:
    """Name, output and options of `NAME=OUTPUT,KEY=VALUE`. Raises InputError."""
    head, *more = spec.split(",")
    name, _, output = head.partition("=")
    if name not in NAMED or not hasattr(NAMED[name], "takes_options"):
        name, _, output = spec.partition("=")  # which may have commas in it
        return name, output, {}
    options = {}
    for one in more:
        key, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"--metric {spec}: {one!r}: expected KEY=VALUE")
        options[key] = value
    return name, output, options
