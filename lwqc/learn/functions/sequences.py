"""Sequences, which are lists, and optionals, which are None where they are empty."""

from __future__ import annotations

from typing import Any

import torch

from lwqc.learn.operation import Call, Operation, Table, Tensor, numbers, onnx


def _empty(call: Call) -> list[Tensor]:
    return []


def _construct(call: Call, *values: Tensor) -> list[Tensor]:
    return list(values)


def _at(call: Call, sequence: list[Tensor], place: Tensor) -> Tensor:
    return sequence[int(place.item())]


def _insert(
    call: Call, sequence: list[Tensor], value: Tensor, place: Tensor | None = None
) -> list[Tensor]:
    made = list(sequence)
    if place is None:
        return [*made, value]
    made.insert(int(place.item()), value)
    return made


def _erase(call: Call, sequence: list[Tensor], place: Tensor | None = None) -> list[Tensor]:
    made = list(sequence)
    del made[-1 if place is None else int(place.item())]
    return made


def _length(call: Call, sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence))


def _joined(call: Call, sequence: list[Tensor]) -> Tensor:
    axis = call.get("axis", 0)
    return torch.stack(sequence, axis) if call.get("new_axis", 0) else torch.cat(sequence, axis)


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = call.get("axis", 0)
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return parts if call.get("keepdims", 1) else [part.squeeze(axis) for part in parts]
    each = numbers(sizes) or []
    return list(torch.split(x, each if sizes.ndim else each[0], axis))


def _map(call: Call, scope: Any, sequence: list[Tensor], *others: Any) -> Any:
    body = call.get("body")
    made = [
        body.run_body(scope, (value, *(o[i] if isinstance(o, list) else o for o in others)))
        for i, value in enumerate(sequence)
    ]
    return tuple([list(each) for each in zip(*made, strict=True)])


def _optional(call: Call, value: Any = None) -> Any:
    return value


def _has(call: Call, value: Any = None) -> Tensor:
    return torch.tensor(value is not None)


TABLE: Table = {
    **onnx(
        ConcatFromSequence=_joined,
        Optional=_optional,
        OptionalGetElement=_optional,
        OptionalHasElement=_has,
        SequenceAt=_at,
        SequenceConstruct=_construct,
        SequenceEmpty=_empty,
        SequenceErase=_erase,
        SequenceInsert=_insert,
        SequenceLength=_length,
    ),
    ("", "SequenceMap"): Operation(_map, scoped=True),
    ("", "SplitToSequence"): Operation(_split, numbers=(1,)),
}
