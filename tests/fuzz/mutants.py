"""One mutant after another, each told by its number and the seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.checker import ValidationError

from tests.fuzz import of_models, of_nodes, of_values
from tests.fuzz.corpus import MODELS
from tests.fuzz.kinds import AREAS, NothingFits, Rng, pick
from tests.fuzz.of_bytes import BYTES

AREAS_OF = (of_nodes, of_values, of_models)  # what registers mutations
_BYTE_SHARE = 0.2
_TRIES = 50


@dataclass(frozen=True)
class Mutant:
    """A changed model. model: the name of the original. changes: names of mutations."""

    model: str
    changes: tuple[str, ...]
    data: bytes


@cache
def original(name: str) -> bytes:
    return MODELS[name]().SerializeToString()


def mutant(seed: int, number: int) -> Mutant:
    """The mutant of that number: a model, and one to three changes of it."""
    rng = np.random.default_rng([seed, number])
    name = pick(rng, sorted(MODELS))
    if rng.random() < _BYTE_SHARE:
        change = pick(rng, BYTES)
        return Mutant(name, (change.__name__,), change(rng, original(name)))
    for _ in range(_TRIES):
        proto = onnx.ModelProto.FromString(original(name))
        try:
            changes = [_change(rng, proto) for _ in range(pick(rng, (1, 1, 1, 2, 3)))]
            return Mutant(name, tuple(changes), proto.SerializeToString())
        except (DecodeError, EncodeError, ValueError, ValidationError):  # refused by libraries
            continue
    return Mutant(name, (), original(name))


def _change(rng: Rng, proto: onnx.ModelProto) -> str:
    while True:
        function = pick(rng, AREAS[pick(rng, sorted(AREAS))])
        try:
            function(rng, proto)
        except NothingFits:
            continue
        return function.__name__
