"""What models compute, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.passes.instruments import moved_output
from lwqc.runtime.data import default_sizes, required_inputs
from lwqc.runtime.random_inputs import random_feeds
from lwqc.runtime.session import Session, SessionSettings

Array = NDArray[Any]
Feeds = Mapping[str, Array]
TOLERANCE = 1e-5  # of an output's largest number


def feeds_of(model: ir.Model, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Made-up inputs of a model. sizes: of dynamic dimensions, by name."""
    inputs = required_inputs(model)
    return next(iter(random_feeds(model, 1, seed, default_sizes(inputs, sizes))))


def outputs_of(model: ir.Model, feeds: Feeds | None = None) -> dict[str, Array]:
    """Outputs by name, without the runtime's own graph optimisation."""
    session = Session(model, SessionSettings(optimize=False), label="model under test")
    return dict(session({n: np.asarray(v) for n, v in (feeds or feeds_of(model)).items()}))


def assert_same_outputs(
    expected: ir.Model,
    found: ir.Model,
    feeds: Feeds | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that two models compute the same.

    feeds: inputs of both; made up by default. tolerance: of an output's largest number. Raises
    AssertionError that names the output which differs most.
    """
    given = feeds_of(expected) if feeds is None else feeds
    moved = moved_output(outputs_of(expected, given), outputs_of(found, given), tolerance)
    assert not moved, moved
