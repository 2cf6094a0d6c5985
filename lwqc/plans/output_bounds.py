"""Bounds on what single outputs lose, as weights of their losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwqc.errors import InputError
from lwqc.model.numerals import share


def spread(options: Mapping[str, Any], whole: float | None) -> dict[str, Any]:
    """Options with `bound_outputs` said by `weight_outputs`: the loss of an output, each times its
    weight, is within `whole`, the bound of the others, where the output is within its own.

    Raises InputError where the others have no bound, and for a bound that is none.
    """
    said = dict(options)
    bounds = said.pop("bound_outputs", None)
    if not bounds:
        return said
    if not whole:
        raise InputError("--bound-outputs: say with --max-drop what the other outputs may lose")
    weights = dict(said.get("weight_outputs") or {})
    for name, given in bounds.items():
        bound = _bound(name, given)
        if name in weights:
            raise InputError(f"--bound-outputs {name}: --weight-outputs says what it counts")
        weights[name] = whole / bound
    return {**said, "weight_outputs": weights}


def _bound(name: str, given: str | float) -> float:
    try:
        bound = share(given)
    except ValueError as error:
        raise InputError(f"--bound-outputs {name}={given}: expected a share such as 5%") from error
    if not 0 < bound <= 1:
        raise InputError(f"--bound-outputs {name}={given}: must be above 0 and at most 1")
    return bound
