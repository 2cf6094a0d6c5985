from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, find, given, seed, settings

from tests.random_graphs import KINDS, feeds, kinds_of, models, run

GENERATE = settings(
    max_examples=30,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    first, second = (run(model, feeds(model, i)) for i in (2, 3))
    for value, a, b in zip(model.graph.output, first, second, strict=True):
        assert a.shape == tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        assert np.isfinite(a).all()
        assert np.abs(a).max() < 1e3
        assert not np.array_equal(a, b)


@GENERATE
@given(models())
def test_models_are_valid_and_run(model: onnx.ModelProto) -> None:
    assert 5 <= len(model.graph.node) <= 30
    assert [o.version for o in model.opset_import] == [18]
    assert model.ir_version <= 10
    check(model)


def test_the_same_draws_give_the_same_bytes() -> None:
    def collect() -> list[bytes]:
        found: list[bytes] = []

        @seed(0)
        @GENERATE
        @given(models())
        def keep(model: onnx.ModelProto) -> None:
            found.append(model.SerializeToString(deterministic=True))

        keep()
        return found

    assert collect() == collect()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_step_is_reached(kind: str) -> None:
    """Alone, or after one that makes what it needs: a second tensor, or an axis of size 1."""
    before = {"residual": ["activation"], "squeeze": ["unsqueeze"]}.get(kind, [])
    check(
        find(
            models([*before, kind], min_nodes=1),
            lambda model: kind in kinds_of(model),
            settings=settings(GENERATE, max_examples=200),
        )
    )
