"""How much the loss of each output counts, as users say it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.plans.output_bounds import OutputWeights


def checked_weights(
    given: Mapping[str, float] | None, model: ir.Model, metric: object
) -> OutputWeights:
    """Weights of outputs. Raises InputError for those of no output, and beside a metric."""
    weights = given if isinstance(given, OutputWeights) else OutputWeights(dict(given or {}))
    known = [str(value.name) for value in model.graph.outputs]
    for option, names in (("weight", weights.said), ("bound", weights.bounds)):
        for name in names:
            if name not in known:
                known_ones = expected(name, known)
                raise InputError(
                    f"--{option}-outputs: the model has no output {name!r}; {known_ones}"
                )
        if names and metric is not None:
            raise InputError(
                f"--{option}-outputs is about the loss of outputs, which --metric takes the "
                "place of"
            )
    for name, weight in weights.said.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"--weight-outputs {name}={weight}: expected a number of 0 or more")
    if weights and not any(weights.get(name, 1.0) for name in known):
        raise InputError("--weight-outputs: no output counts")
    return weights
