"""What models compute, compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.passes.instruments import moved_output
from lwqc.runtime.data import default_sizes, required_inputs
from lwqc.runtime.random_inputs import random_feeds
from lwqc.runtime.session import Session, SessionSettings
from lwqc.testing.text import AnyModel, as_model

Array = NDArray[Any]
Feeds = Mapping[str, Array]
TOLERANCE = 1e-5  # of an output's largest number


def feeds_of(model: AnyModel, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Made-up inputs of a model. sizes: of dynamic dimensions, by name."""
    built = as_model(model)
    inputs = required_inputs(built)
    return next(iter(random_feeds(built.graph, 1, seed, default_sizes(inputs, sizes))))


def outputs_of(model: AnyModel, feeds: Feeds | None = None) -> dict[str, Array]:
    """Outputs by name, without the runtime's own graph optimisation."""
    built = as_model(model)
    (found,) = _outputs(built, [feeds_of(built) if feeds is None else feeds])
    return found


def assert_same_outputs(
    expected: AnyModel,
    found: AnyModel,
    feeds: Feeds | Iterable[Feeds] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that two models compute the same.

    feeds: inputs of both, once or several times; made up by default. tolerance: of an output's
    largest number. Raises AssertionError that names the output which differs most.
    """
    first, second = as_model(expected), as_model(found)
    if feeds is None:
        feeds = feeds_of(first)
    rows = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    if not rows:
        raise InputError("feeds: there are none to compare outputs on")
    pairs = zip(_outputs(first, rows), _outputs(second, rows), strict=True)
    for number, (before, after) in enumerate(pairs):
        moved = moved_output(before, after, tolerance)
        assert not moved, f"feed {number}: {moved}" if len(rows) > 1 else moved


def _outputs(model: ir.Model, rows: Sequence[Feeds]) -> list[dict[str, Array]]:
    session = Session(model, SessionSettings(optimize=False), label="model under test")
    return [dict(session({n: np.asarray(v) for n, v in feeds.items()})) for feeds in rows]
