"""Analyses of operators whose ranks, sizes, attributes or constants do not fit them.

A rule that meets one is a barrier; none may raise. Files that get past the gate can be like this
where ONNX's own inference does not look, or knows neither operator nor shapes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.attention_core import find_attention
from lwqc.graph.branch_kinds import branch_tree
from lwqc.graph.cost import node_costs
from lwqc.graph.groups import find_groups
from lwqc.graph.readers import find_readers
from lwqc.graph.sampled import Sampled
from lwqc.graph.scalable import find_spans
from lwqc.graph.sites import find_sites
from tests.fuzz.kinds import EXTREMES
from tests.graph.test_operator_rules import CASES
from tests.small_models import Small, measured_shapes

TRIES = 6
Shapes = dict[str, Sampled]


@cache
def built(name: str) -> tuple[bytes, Shapes]:
    small = Small(opset=CASES[name].opset)
    proto = small.build(CASES[name].build(small))
    return proto.SerializeToString(), measured_shapes(proto, small.feeds)


def another_shape(rng: random.Random, model: ir.Model, shapes: Shapes) -> None:
    name = rng.choice(list(shapes))
    sizes = shapes[name].first
    changed = rng.choice([sizes[:-1], (*sizes, rng.choice((1, 2, 3)))])
    if sizes and rng.random() < 0.5:
        at = rng.randrange(len(sizes))
        changed = (*sizes[:at], rng.choice((0, 1, 2, 3, 7, 8, 1_000_003)), *sizes[at + 1 :])
    second = rng.choice([changed, tuple(n + 1 for n in changed)])
    shapes[name] = Sampled(changed, second)
    if rng.random() < 0.2:
        del shapes[name]


def another_attribute(rng: random.Random, model: ir.Model, shapes: Shapes) -> None:
    listed = [(n, a) for n in model.graph for a in n.attributes.values()]
    ints = [(n, a) for n, a in listed if a.type in (ir.AttributeType.INT, ir.AttributeType.INTS)]
    if not ints:
        return
    node, old = rng.choice(ints)
    if old.type is ir.AttributeType.INT:
        node.attributes[old.name] = ir.AttrInt64(old.name, rng.choice(EXTREMES))
        return
    values = [*old.as_ints()]
    longer = [values[:-1], [*values, 1], [rng.choice(EXTREMES), *values[1:]]]
    node.attributes[old.name] = ir.AttrInt64s(old.name, rng.choice(longer))


def another_constant(rng: random.Random, model: ir.Model, shapes: Shapes) -> None:
    stored = [v for v in model.graph.initializers.values() if v.dtype is ir.DataType.INT64]
    if not stored:
        return
    value = rng.choice(stored)
    assert value.const_value is not None
    flat = value.const_value.numpy().ravel()
    changed = rng.choice([flat[:-1], np.append(flat, 1), np.append(flat[1:], rng.choice(EXTREMES))])
    value.const_value = ir.tensor(changed, name=value.name)


CHANGES: list[Callable[[random.Random, ir.Model, Shapes], None]] = [
    another_shape,
    another_shape,
    another_attribute,
    another_constant,
]


@pytest.mark.parametrize("name", CASES)
def test_no_analysis_raises(name):
    content, known = built(name)
    for seed in range(TRIES):
        rng = random.Random(f"{name} {seed}")
        model = ir.serde.deserialize_model(onnx.ModelProto.FromString(content))
        shapes = dict(known)
        for change in rng.choices(CHANGES, k=rng.choice((1, 1, 2))):
            change(rng, model, shapes)
        groups = find_groups(model, shapes)
        find_readers(groups)
        assert all(barrier.reason for barrier in groups.barriers)
        find_spans(model, shapes)
        find_sites(model)
        node_costs(model.graph, {n: s.first for n, s in shapes.items()})
        branch_tree(model.graph)
        find_attention(model.graph, shapes)
