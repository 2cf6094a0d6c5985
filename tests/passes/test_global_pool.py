"""Means over all places of an image are pooled; other means stay."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.passes.global_pool import GlobalPool
from lwqc.runtime.session import Session
from tests.build import model, normal


def built(axes, keepdims, *, rank=4, opset=20):
    shape = ["batch", 3, 5, 7][:rank]
    rows = [("ReduceMean", ["x", "axes"], "y", {"keepdims": keepdims})]
    return model(rows, {"axes": np.asarray(axes)}, {"x": shape}, ["y"], opset=opset)


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_spatial_means_are_pooled(axes, keepdims):
    net, feeds = built(axes, keepdims), {"x": normal(2, 3, 5, 7)}
    before = Session(net)(feeds)["y"]
    assert GlobalPool()(net).modified
    expected = ["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Squeeze"]
    assert [node.op_type for node in net.graph] == expected
    np.testing.assert_allclose(Session(net)(feeds)["y"], before, atol=1e-6)


@pytest.mark.parametrize(("axes", "rank"), [([3], 4), ([1, 2, 3], 4), ([2], 3), ([-1], 3)])
def test_other_means_stay(axes, rank):
    assert not GlobalPool()(built(axes, 1, rank=rank)).modified
