"""The list of mutations: each changes one thing of a model, and is found by its area."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx

Rng = np.random.Generator
Mutation = Callable[[Rng, onnx.ModelProto], None]
AREAS: dict[str, list[Mutation]] = {}
EXTREMES = (0, 1, -1, 2, 3, 7, 127, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
ODD_NAMES = ("", "x", "y", "w", " ", "a\nb", "\x1b[31mred", "[red]", "../up", "ä" * 40, "n" * 5000)
T = TypeVar("T")


class NothingFits(Exception):
    """The model has nothing that the mutation could change."""


def mutation(area: str) -> Callable[[Mutation], Mutation]:
    def keep(function: Mutation) -> Mutation:
        AREAS.setdefault(area, []).append(function)
        return function

    return keep


def pick(rng: Rng, items: Sequence[T]) -> T:
    """One of them. Raises NothingFits where there is none."""
    if not len(items):
        raise NothingFits
    return items[int(rng.integers(len(items)))]


def extreme(rng: Rng) -> int:
    return pick(rng, EXTREMES)


def bodies(proto: onnx.ModelProto) -> list[Any]:
    """Everything that has nodes: the graph, graphs inside of nodes, functions."""
    found: list[Any] = [proto.graph, *proto.functions]
    for each in found:  # grows while it is read
        for node in each.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return found


def graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [each for each in bodies(proto) if isinstance(each, onnx.GraphProto)]


def nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for each in bodies(proto) for node in each.node]


def infos(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Of inputs, outputs and values between."""
    return [v for g in graphs(proto) for v in (*g.input, *g.output, *g.value_info)]


def tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers and tensors in attributes."""
    stored = [t for g in graphs(proto) for t in g.initializer]
    return stored + [a.t for n in nodes(proto) for a in n.attribute if a.HasField("t")]


def value_names(proto: onnx.ModelProto) -> list[str]:
    found = {n for node in nodes(proto) for n in (*node.input, *node.output)}
    return sorted(found | {v.name for v in infos(proto)} | {t.name for t in tensors(proto)})
