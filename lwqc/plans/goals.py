"""What the user asked for, and whether the measured artefact meets it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from lwqc.errors import InputError

_UNITS = {"b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}  # fmt: skip
CONVERSION_DROP = 0.01  # what bringing a model to a target may cost, where nothing else is asked


@dataclass(frozen=True)
class Amount:
    """A bound: a fraction of the original's value, or an absolute one."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value:g} of the original" if self.relative else f"{self.value:.12g}"

    def resolve(self, original: float) -> float:
        """The bound in the original's unit."""
        return self.value * original if self.relative else self.value


def parse_size(text: str | float | None) -> Amount | None:
    """`0.25` (of the original) or `20MB`, in bytes. Raises InputError."""
    if text is None:
        return None
    return _parse(str(text), _UNITS, "size", "a fraction such as 0.25 or a size such as 20MB")


def parse_latency(text: str | float | None) -> Amount | None:
    """`0.5` (of the original) or `8ms`, in milliseconds. Raises InputError."""
    if text is None:
        return None
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    return _parse(str(text), units, "latency", "a fraction such as 0.5 or a time such as 8ms")


def parse_macs(text: str | float | None) -> Amount | None:
    """`0.5` (of the original) or `300M`, in multiply-accumulates. Raises InputError."""
    if text is None:
        return None
    units = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
    return _parse(str(text), units, "macs", "a fraction such as 0.5 or a number such as 300M")


def parse_memory(text: str | float | None) -> Amount | None:
    """`0.5` (of the original) or `200MB`, in bytes. Raises InputError."""
    if text is None:
        return None
    return _parse(str(text), _UNITS, "memory", "a fraction such as 0.5 or a size such as 200MB")


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str, expected: str) -> Amount:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = found.group(2).lower() if found else ""
    if not found or (unit and unit not in units):
        raise InputError(f"{what} {text!r}: expected {expected}")
    number = float(found.group(1))
    if not unit and not 0 < number <= 1:
        raise InputError(f"{what} {text!r}: a value without a unit is a fraction between 0 and 1")
    if number <= 0:
        raise InputError(f"{what} {text!r}: must be above 0")
    return Amount(number * units[unit], False) if unit else Amount(number, True)


DEFAULT_DROP = 0.01


@dataclass(frozen=True)
class Goals:
    """Budgets of one run.

    max_drop: fraction of the metric, or of what the outputs lose. fastest: within that and no
    budget, the fastest model is wanted rather than the smallest. max_macs: multiply-accumulates of
    one run, at the sizes of the first feeds. max_memory: peak of a process that loads and runs the
    model, see `lwqc.runtime.memory`.
    """

    max_size: Amount | None = None
    max_latency: Amount | None = None
    avg_bits: float | None = None
    max_drop: float | None = None
    fastest: bool = False
    max_macs: Amount | None = None
    max_memory: Amount | None = None

    def __post_init__(self) -> None:
        if self.avg_bits is not None and not 0 < self.avg_bits <= 32:
            raise InputError(f"avg-bits {self.avg_bits}: must be above 0 and at most 32")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise InputError(f"max-drop {self.max_drop}: must be between 0 and 1")
        if self.fastest and self.budgets:
            raise InputError(
                "the fastest model has no budget: leave sizes, times, MACs and memory out"
            )

    @property
    def asked(self) -> dict[str, str]:
        """What is bounded, for readers: sizes in bytes, times in milliseconds."""
        shown = {f.name: _shown(getattr(self, f.name)) for f in fields(self)}
        return {name: text for name, text in shown.items() if text}

    @property
    def budgets(self) -> bool:
        """Whether something is bounded that costs, rather than the loss."""
        bounds = (
            self.max_size, self.avg_bits, self.max_latency, self.max_macs, self.max_memory
        )  # fmt: skip
        return any(bound is not None for bound in bounds)

    def promising(self, max_drop: float = DEFAULT_DROP) -> Goals:
        """The same with the loss bounded that nobody bounded; unchanged where a budget decides."""
        if self.budgets or self.max_drop is not None:
            return self
        return replace(self, max_drop=max_drop, fastest=True)

    @property
    def wants_size(self) -> bool:
        """Whether bytes were asked for, in any form."""
        return self.max_size is not None or self.avg_bits is not None


def _shown(bound: Amount | float | None) -> str:
    """A bound, or a wish, as text; "" where there is none."""
    if isinstance(bound, bool):
        return "yes" if bound else ""
    return "" if bound is None else str(bound) if isinstance(bound, Amount) else f"{bound:g}"


def parse_goals(
    max_size: str | float | None = None,
    max_latency: str | float | None = None,
    avg_bits: float | None = None,
    max_drop: float | None = None,
    fastest: bool = False,
    max_macs: str | float | None = None,
    max_memory: str | float | None = None,
) -> Goals:
    """Budgets as a caller writes them. Raises InputError."""
    return Goals(
        max_size=parse_size(max_size),
        max_latency=parse_latency(max_latency),
        avg_bits=avg_bits,
        max_drop=max_drop,
        fastest=fastest,
        max_macs=parse_macs(max_macs),
        max_memory=parse_memory(max_memory),
    )


@dataclass(frozen=True)
class Outcome:
    """One constraint and what was reached, in `unit`. tolerance: share by which repeats differ."""

    name: str
    asked: float
    reached: float
    unit: str
    tolerance: float = 1e-9

    @property
    def met(self) -> bool:
        """Whether the measured value is within the bound."""
        return self.reached <= self.asked * (1 + self.tolerance)
