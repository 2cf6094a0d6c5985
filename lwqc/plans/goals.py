"""What the user asked for, and whether the measured artefact meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lwqc.errors import InputError
from lwqc.plans.bounds import DEFAULT_DROP, Amount, Share
from lwqc.plans.options import Budgets
from lwqc.plans.spelled_out import bounds_of

CONVERSION_DROP = 0.01  # what bringing a model to a target may cost, where nothing else is asked
BOUNDS = bounds_of(Budgets)


@dataclass(frozen=True, init=False)
class Goals:
    """Budgets of one run, as a caller writes them.

    bounds: by option, in the order of `lwqc.plans.options.Budgets`; what each of them bounds says
    its file in `lwqc.decide.budgets`. max_drop: fraction of the metric, or of what the outputs
    lose. fastest: within that and no budget, the fastest model is wanted rather than the smallest.
    max_class_drop: share of the samples of any class that may be lost. Both as numbers or in
    percent. Raises InputError.
    """

    bounds: Mapping[str, Amount]
    max_drop: float | None
    fastest: bool
    max_class_drop: float | None

    def __init__(
        self,
        *,
        max_drop: str | float | None = None,
        fastest: bool = False,
        max_class_drop: str | float | None = None,
        **bounds: str | float | Amount | None,
    ) -> None:
        losses = {
            name: None if given is None else _loss(name, given)
            for name, given in (("max_drop", max_drop), ("max_class_drop", max_class_drop))
        }
        read = {
            name: given if isinstance(given, Amount) else BOUNDS[name].read(cast(Any, given))
            for name in sorted(bounds, key=list(BOUNDS).index)
            if (given := bounds[name]) is not None
        }
        if fastest and read:
            flag = next(iter(read)).replace("_", "-")
            raise InputError(f"the fastest model has no budget: leave out --{flag}")
        for name, value in {"bounds": read, "fastest": fastest, **losses}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, bounds: Mapping[str, Amount]) -> Goals:
        """Bounds by option, and nothing else."""
        return cls(**cast(Any, bounds))

    def without(self, name: str) -> Goals:
        """The same without one bound."""
        left = {option: bound for option, bound in self.bounds.items() if option != name}
        return Goals(max_drop=self.max_drop, max_class_drop=self.max_class_drop, **cast(Any, left))

    @property
    def asked(self) -> dict[str, str]:
        """What is bounded, for readers: sizes in bytes, times in milliseconds."""
        shown = {name: str(bound) for name, bound in self.bounds.items()}
        if self.max_drop is not None:
            shown["max_drop"] = f"{self.max_drop:g}"
        if self.max_class_drop is not None:
            shown["max_class_drop"] = f"{self.max_class_drop:g}"
        return {**shown, "fastest": "yes"} if self.fastest else shown

    @property
    def max_size(self) -> Amount | None:
        """Bytes of the file; allocators know no other bounds than this one and the next."""
        return self.bounds.get("max_size")

    @property
    def avg_bits(self) -> float | None:
        """Stored bits per weight."""
        bound = self.bounds.get("avg_bits")
        return None if bound is None else bound.value

    def promising(self, max_drop: float = DEFAULT_DROP) -> Goals:
        """The same with the loss bounded that nobody bounded; unchanged where a budget decides."""
        if self.bounds or self.max_drop is not None:
            return self
        return Goals(max_drop=max_drop, fastest=True, max_class_drop=self.max_class_drop)

    @property
    def wants_size(self) -> bool:
        """Whether bytes were asked for, in any form."""
        return self.max_size is not None or self.avg_bits is not None


def _loss(option: str, given: str | float) -> float:
    name = option.replace("_", "-")
    share = Share(name).read(given)
    if not 0 <= share <= 1:
        raise InputError(f"{name} {given}: must be between 0 and 1")
    return share


@dataclass(frozen=True)
class Outcome:
    """One constraint and what was reached, in `unit`.

    tolerance: share by which repeats differ. why: what a bound that was missed is made of, or "".
    """

    name: str
    asked: float
    reached: float
    unit: str
    tolerance: float = 1e-9
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether the measured value is within the bound."""
        return self.reached <= self.asked * (1 + self.tolerance)
