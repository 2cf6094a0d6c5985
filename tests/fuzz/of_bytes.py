"""Mutations of a model file as bytes."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.kinds import Rng, pick

BYTES: list[Callable[[Rng, bytes], bytes]] = []


def mutation(function: Callable[[Rng, bytes], bytes]) -> Callable[[Rng, bytes], bytes]:
    BYTES.append(function)
    return function


def _at(rng: Rng, data: bytes) -> int:
    """A place; most of them near the ends, where the graph is rather than the weights."""
    size = max(len(data), 1)
    near = int(rng.integers(min(size, 2000)))
    return int(rng.integers(size)) if rng.random() < 0.3 else pick(rng, (near, size - 1 - near))


@mutation
def flip_bits(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[_at(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@mutation
def set_byte(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        changed[_at(rng, data)] = pick(rng, (0, 1, 0x7F, 0x80, 0xFF))
    return bytes(changed)


@mutation
def cut_off(rng: Rng, data: bytes) -> bytes:
    return data[: _at(rng, data)]


@mutation
def take_out(rng: Rng, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 40)) :]


@mutation
def put_in(rng: Rng, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]


@mutation
def repeat(rng: Rng, data: bytes) -> bytes:
    start, at = _at(rng, data), _at(rng, data)
    return data[:at] + data[start : start + int(rng.integers(1, 400))] + data[at:]
