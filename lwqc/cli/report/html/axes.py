"""Numbers to places on a drawing, and the round numbers that an axis is marked with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lwqc.cli.report.html.page import Mark, Scatter
from lwqc.model.numerals import size_text

_TICKS = 6
_DECADES = 1.0  # between the least and the most, from which an axis counts powers of ten


@dataclass(frozen=True)
class Axis:
    """low, high: of the numbers. length: of the drawing. logarithmic: equal steps are factors."""

    low: float
    high: float
    length: float
    logarithmic: bool = False

    @staticmethod
    def of(values: Sequence[float], length: float, *, may_be_logarithmic: bool) -> Axis:
        """An axis that all values lie on."""
        low, high = min(values), max(values)
        if may_be_logarithmic and low > 0 and math.log10(high / low) > _DECADES:
            return Axis(low / 1.2, high * 1.2, length, True)
        room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
        return Axis(low - room if low < 0 else max(low - room, 0.0), high + room, length)

    def at(self, value: float) -> float:
        """Its place."""
        scale: Callable[[float], float] = math.log10 if self.logarithmic else float
        low, high = scale(self.low), scale(self.high)
        return round(self.length * (scale(value) - low) / (high - low), 2)

    @property
    def ticks(self) -> list[float]:
        """Round numbers along it."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            marks = (1,) if len(powers) > _TICKS // 2 else (1, 2, 5)
            found = (mark * 10.0**power for power in powers for mark in marks)
            return [tick for tick in found if self.low <= tick <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / _TICKS))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (step * f) <= _TICKS)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Plot:
    """A scatter whose numbers have places. line: through the front, as SVG has it."""

    width: float
    height: float
    marks: tuple[tuple[float, float, Mark], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    line: str
    limit: float | None


def plot(scatter: Scatter, width: float = 560, height: float = 260) -> Plot:
    """Places of everything; points that are not finite are left out by whoever makes them."""
    xs = [m.x for m in scatter.marks] + ([] if scatter.limit is None else [scatter.limit])
    x = Axis.of(xs, width, may_be_logarithmic=False)
    y = Axis.of([m.y for m in scatter.marks], height, may_be_logarithmic=True)
    placed = [(x.at(m.x), round(height - y.at(m.y), 2), m) for m in scatter.marks]
    front = sorted((px, py) for px, py, m in placed if m.look == "front")
    return Plot(
        width,
        height,
        tuple(placed),
        tuple((x.at(t), size_text(t) if scatter.x_is_bytes else f"{t:g}") for t in x.ticks),
        tuple((round(height - y.at(t), 2), f"{t:g}") for t in y.ticks),
        " ".join(f"{px},{py}" for px, py in front),
        None if scatter.limit is None else x.at(scatter.limit),
    )


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """By point: whether no other one costs no more and errs less."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    best, found = math.inf, [False] * len(points)
    for i in order:
        if points[i][1] < best:
            best, found[i] = points[i][1], True
    return found
