"""From the importance of single weights to an order in which a group's channels go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.groups import Group, Occurrence
from lwqc.model.weights import ReadArray, dequantized, is_float, stored_tensor

Importance = NDArray[np.float64]
Normaliser = Literal["none", "mean", "sum", "max", "lamp"]


@dataclass(frozen=True)
class Ranking:
    """An order of removal. order [size]: channel indices, the least important first.

    cost [size]: what removing each of them adds, in that order; below 0 where it is a gain.
    """

    order: NDArray[np.intp]
    cost: Importance

    @classmethod
    def of(cls, importance: Importance) -> Ranking:
        """Channels by importance [size]; ties go by index. Raises InputError for NaN."""
        if not np.isfinite(importance).all():
            raise InputError("a score is not finite; check the weights, the data and the loss")
        signed = cls.signed(importance)
        return cls(signed.order, np.maximum(signed.cost, 0.0))

    @classmethod
    def signed(cls, importance: Importance) -> Ranking:
        """The same where numbers below 0 mean something, and are compared as they are."""
        order = np.argsort(importance, kind="stable")
        return cls(order, importance[order])


@dataclass(frozen=True)
class Member:
    """One axis of a weight in which a group takes part.

    array: the weight. owner [array.shape[axis]]: the group's index at each position, or -1.
    """

    occurrence: Occurrence
    array: NDArray[np.float32]
    axis: int
    owner: NDArray[np.intp]

    @property
    def rows(self) -> NDArray[np.float32]:
        """[positions, everything else]."""
        moved = np.moveaxis(self.array, self.axis, 0)
        return moved.reshape(len(moved), -1)


def members(group: Group, read: ReadArray) -> Iterator[Member]:
    """The group's matrices and kernels; vectors (biases, norm gains) follow what they belong to."""
    for occurrence in group.weights:
        tensor = stored_tensor(occurrence.value)
        if tensor is None or len(tensor.shape) < 2:
            continue
        values = read(tensor) if is_float(tensor) else dequantized(occurrence.value, read)
        if values is None:
            continue
        array = np.asarray(values, np.float32)
        yield Member(occurrence, array, occurrence.axis, group.owner(occurrence))


def gathered(owner: NDArray[np.intp], values: NDArray[np.floating], size: int) -> Importance:
    """Sum of values [positions] per index of the group [size]."""
    mine = owner >= 0
    weights = values[mine].astype(np.float64)
    return np.bincount(owner[mine], weights=weights, minlength=size).astype(np.float64)


def aggregated(
    group: Group, read: ReadArray, saliency: Callable[[Member], NDArray[np.floating]]
) -> Importance:
    """Mean over the group's weights of the summed saliency of each channel's slices [size].

    saliency: of one member, per position along its axis. Source: SPA (arXiv 2403.18955), with the
    aggregation of DepGraph (arXiv 2301.12900).
    """
    parts = [gathered(m.owner, _by_position(saliency, m), group.size) for m in members(group, read)]
    if not parts:
        return np.ones(group.size)  # nothing to go by: all alike
    return np.asarray(np.mean(parts, axis=0))


def together(
    group: Group, values: Callable[[str], NDArray[np.floating] | None]
) -> Importance | None:
    """Sum over all numbers that go with each channel [size]; one that goes twice counts once.

    values: of a stored tensor by name, in its shape; None for those that do not count. None where
    none of the group's do.
    """
    axes: dict[str, list[tuple[int, NDArray[np.intp]]]] = {}
    for occurrence in group.weights:
        places = axes.setdefault(occurrence.name, [])
        places.append((occurrence.axis, group.owner(occurrence)))
    parts = []
    for name, places in axes.items():
        found = values(name)
        if found is None:
            continue
        for number, (axis, owner) in enumerate(places):
            mine = _along(owner, axis, found.ndim)
            left = found.astype(np.float64)
            for other_axis, other in places[:number]:
                left = np.where(mine == _along(other, other_axis, found.ndim), 0.0, left)
            rest = tuple(a for a in range(found.ndim) if a != axis)
            parts.append(gathered(owner, left.sum(rest), group.size))
    return np.asarray(np.sum(parts, axis=0)) if parts else None


def _along(owner: NDArray[np.intp], axis: int, ndim: int) -> NDArray[np.intp]:
    """An owner for each position of an axis, to compare with those of another one."""
    return owner.reshape([-1 if a == axis else 1 for a in range(ndim)])


def _by_position(
    saliency: Callable[[Member], NDArray[np.floating]], member: Member
) -> NDArray[np.floating]:
    values = np.asarray(saliency(member), np.float64)
    if values.shape != member.owner.shape:
        raise InputError(
            f"gave the shape {values.shape} for weight {member.occurrence.value.name}; "
            f"expected {member.owner.shape}, one number for each position"
        )
    return values


def normalised(importance: Importance, how: Normaliser) -> Importance:
    """Importance [size] made comparable between groups.

    lamp: divided by the sum over all that are at least as important (arXiv 2010.07611).
    """
    if how == "lamp":
        order = np.argsort(importance, kind="stable")
        remaining = np.cumsum(importance[order][::-1])[::-1]
        result = np.empty_like(importance)
        result[order] = importance[order] / np.maximum(remaining, 1e-30)
        return result
    scale = {"none": 1.0, "mean": importance.mean(), "sum": importance.sum()}.get(how)
    return importance / max(float(importance.max() if scale is None else scale), 1e-30)
