"""Random graphs: what the algebra says is coupled really is."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lwqc.testing.oracles import Oracle, half, prepared
from tests.random_graphs import KINDS, feeds, models

TOLERANCE = 2e-5  # ten times the largest effect of one-ulp input changes over 10,000 such graphs
_ATTENTION = [k for k in KINDS if "attention" in k or k in ("rotary", "rms_norm", "residual")]


@given(models(), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_oracles_hold_for_random_graphs(model: onnx.ModelProto, seed: int) -> None:
    check(model, seed)


@given(models(_ATTENTION, max_nodes=60), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_oracles_hold_for_random_attention(model: onnx.ModelProto, seed: int) -> None:
    check(model, seed)


def check(proto: onnx.ModelProto, seed: int) -> None:
    """All three oracles, each for all groups of the model together."""
    model, groups, _ = prepared(ir.from_proto(proto))
    assert not groups.barriers
    oracle = Oracle(model, groups, feeds(proto, seed), tolerance=TOLERANCE)
    assert oracle.permutation(groups, seed) <= TOLERANCE
    removed = oracle.possible(half([g for g in groups if not g.statistics], seed))
    assert oracle.zeroed_is_removed(removed) <= TOLERANCE
    removed = oracle.possible(half(groups, seed))
    assert oracle.commutation(list(groups), removed) <= TOLERANCE


_ = pytest
