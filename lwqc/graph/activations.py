"""Functions of one number that have a name, told by their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["identity", "relu", "leaky", "clip", "sigmoid", "hard-sigmoid"]
_STEP = 1 / 16  # around 0, where none of the functions has a kink
_FAR = 1e4
_NEAR = np.linspace(-20, 20, 4001)
# Kinks lie at small fractions; far away only guards of a type's ends begin.
_BEYOND = np.array([50.0, 300.0, _FAR, 1e6, 1e12, 3.4e38, np.inf])
SAMPLES: Array = np.concatenate([_NEAR, -_BEYOND[::-1], _BEYOND, [-1.0, -_STEP, 0.0, _STEP, 1.0]])
_IS_NEAR = np.abs(SAMPLES) <= np.abs(_NEAR).max()
_FINITE = np.isfinite(SAMPLES)
_TOLERANCE = 1e-6  # float32 has no more
_NOTHING = 1e-37  # what float32 has no number for


@dataclass(frozen=True)
class Activation:
    """A function of x: `kind`, times x where that is `gated`.

    a, b: slope of a leaky ReLU; ends of a Clip; factor on x in a sigmoid; slope and value at 0 of a
    hard sigmoid.
    """

    kind: Kind
    a: float = 0.0
    b: float = 0.0
    gated: bool = False

    def __call__(self, x: Array) -> Array:
        """The value at x."""
        value = _VALUES[self.kind](x, self.a, self.b)
        return value * x if self.gated else value


def named(y: Array) -> Activation | None:
    """The activation whose values at `SAMPLES` are `y`; None if it is none of those known."""
    if not np.isfinite(y[_FINITE]).all():
        return None
    # Near its kinks a function is rounded as its largest values are. Far away it is told from one
    # with a floor, however small that is: a logarithm or a quotient behind it depends on it.
    size = min(1.0, float(np.abs(y[_IS_NEAR]).max()))
    rounded = size * np.maximum(1, np.abs(SAMPLES))
    allowed = _TOLERANCE * np.where(_IS_NEAR, rounded, np.abs(y)) + _NOTHING
    for guess in _guesses(y[_FINITE]):
        with np.errstate(invalid="ignore"):
            made = guess(SAMPLES)
            same = bool((np.abs(made - y) <= allowed)[_FINITE].all())
        ends = guess.kind in _STRAIGHT and not guess.gated
        if same and (not ends or np.array_equal(made[~_FINITE], y[~_FINITE])):
            return guess
    return None


def _guesses(y: Array) -> Iterator[Activation]:
    """What it can only be, by a few of its values."""
    low, high = float(y.min()), float(y.max())
    minus, before, zero, behind, plus = (float(v) for v in y[-5:])
    yield Activation("identity")
    yield Activation("relu")
    if 0 < -minus < 1:
        yield Activation("leaky", -minus)
    if -_FAR < low < high < _FAR:
        yield Activation("clip", low, high)
    yield Activation("sigmoid", 1.0)
    slope = (behind - before) / (2 * _STEP)
    if 0 < zero < 1 and slope > 0:
        yield Activation("hard-sigmoid", slope, zero)
    gate, rise = (behind - before) / (2 * _STEP), (behind + before) / (2 * _STEP**2)
    if 0 < gate < 1 and rise > 0:
        yield Activation("hard-sigmoid", rise, gate, gated=True)
    if 0 < plus < 1:
        yield Activation("sigmoid", float(np.log(plus / (1 - plus))), gated=True)


_STRAIGHT = ("identity", "relu", "leaky", "clip")  # what they do to infinities counts: masks
_VALUES: Mapping[Kind, Callable[[Array, float, float], Array]] = {
    "identity": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, 0),
    "leaky": lambda x, a, b: np.asarray(np.where(x < 0, a * x, x)),
    "clip": lambda x, a, b: np.clip(x, a, b),
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-np.clip(a * x, -700, 700))),
    "hard-sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
}
