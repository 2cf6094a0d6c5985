"""How much the losses of outputs count, and what single ones may lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lwqc.errors import InputError
from lwqc.model.numerals import share
from lwqc.plans.bounds import DEFAULT_DROP
from lwqc.plans.option_texts import parse_bounds


@dataclass(frozen=True, eq=False)
class OutputWeights(Mapping[str, float]):
    """What the loss of each output is multiplied by, 1 where nothing is said.

    said: as the caller weighs them. bounds: what single outputs may lose. They count as much more
    or less as that the largest product is within `whole`, which is the bound of the others, where
    each is within its own.
    """

    said: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    whole: float = DEFAULT_DROP

    def __getitem__(self, name: str) -> float:
        return self.whole / self.bounds[name] if name in self.bounds else self.said[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.said, **self.bounds})

    def __len__(self) -> int:
        return len({**self.said, **self.bounds})


def spread(options: Mapping[str, Any], whole: float | None) -> dict[str, Any]:
    """Options in which `bound_outputs` are part of `weight_outputs`, as `OutputWeights`.

    whole: what the other outputs may lose; None for what they may lose where nothing is said.
    Raises InputError for a bound that is none.
    """
    said = dict(options)
    given = said.pop("bound_outputs", None)
    if not given:
        return said
    bounds = {n: _bound(n, b) for n, b in _read(given).items()}
    if whole == 0:
        raise InputError("--bound-outputs: beside --max-drop 0 no output may lose anything")
    weights = said.get("weight_outputs") or {}
    for name in bounds:
        if name in weights:
            raise InputError(f"--bound-outputs {name}: --weight-outputs says what it counts")
    return {
        **said,
        "weight_outputs": OutputWeights(weights, bounds, DEFAULT_DROP if whole is None else whole),
    }


def _read(given: Any) -> Mapping[str, str | float]:
    if isinstance(given, Mapping):
        return given
    return parse_bounds([given] if isinstance(given, str) else given)


def _bound(name: str, given: str | float) -> float:
    try:
        bound = share(given)
    except ValueError as error:
        raise InputError(f"--bound-outputs {name}={given}: expected a share such as 5%") from error
    if not 0 < bound <= 1:
        raise InputError(f"--bound-outputs {name}={given}: must be above 0 and at most 1")
    return bound
