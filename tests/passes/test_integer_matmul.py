"""8-bit products of one activation in several forms."""

from __future__ import annotations

from lwqc.compile.candidates import evaluate, with_formats
from lwqc.compile.losses import outputs_error
from lwqc.decide import planning
from lwqc.decide.compress import open_version
from tests.build import Row, model, normal


def test_static_and_dynamic_sites_may_read_one_tensor() -> None:
    rows: list[Row] = [
        ("Relu", ["x"], "h", {}),
        ("MatMul", ["h", "w0"], "a", {}),
        ("MatMul", ["h", "w1"], "b", {}),
        ("MatMul", ["h", "w2"], "c", {}),
        ("Sum", ["a", "b", "c"], "y", {}),
    ]
    weights = {f"w{i}": normal(64, 32, seed=i, scale=0.1) for i in range(3)}
    data = [{"x": normal(8, 64, seed=i)} for i in range(3)]
    work = open_version(model(rows, weights, {"x": ["batch", 64]}, ["y"]), data=data)
    static, dynamic = (planning.uniform(work, 8, kind) for kind in ("static", "dynamic"))
    mixed = static.model_copy(
        update={"quantize": {**static.quantize, "w1": dynamic.quantize["w1"]}}
    )
    candidate, session = evaluate(work, planning.calibrate(work, mixed, "minmax"))
    kinds = {name: entry.activation for name, entry in candidate.plan.quantize.items()}
    assert kinds == {"w0": "static", "w1": "dynamic", "w2": "static"}
    nodes = [node.op_type for node in with_formats(work, candidate.plan).model.graph]
    assert nodes.count("QuantizeLinear") == nodes.count("DynamicQuantizeLinear") == 1
    assert outputs_error(work, session) < 1e-3
