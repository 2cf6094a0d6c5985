"""Models that are quantized already, for another kind of processor than the one that runs them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from lwqc.compile.execute import apply_plan, execute
from lwqc.decide import own_formats
from lwqc.decide.allocate import allocate
from lwqc.decide.compress import open_version
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import find
from tests.build import Row, model, normal

SHAPE = (2, 16, 12, 12)
DATA = [{"x": normal(*SHAPE, seed=i)} for i in range(4)]


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._feeds = iter(DATA)

    def get_next(self):
        return next(self._feeds, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as onnxruntime's tools write it, by how."""
    folder = tmp_path_factory.mktemp("quantized")
    rows: list[Row] = [
        ("Conv", ["x", "w0", "b0"], "c0", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c0"], "r0", {}),
        ("Conv", ["r0", "w1", "b1"], "c1", {"pads": [1, 1, 1, 1]}),
        ("Add", ["c1", "r0"], "s", {}),
        ("GlobalAveragePool", ["s"], "p", {}),
        ("Flatten", ["p"], "f", {}),
        ("MatMul", ["f", "w2"], "y", {}),
    ]
    weights = {
        "w0": normal(32, 16, 3, 3, seed=7, scale=0.1), "b0": normal(32, seed=8),
        "w1": normal(32, 32, 3, 3, seed=9, scale=0.1), "b1": normal(32, seed=10),
        "w2": normal(32, 24, seed=11, scale=0.2),
    }  # fmt: skip
    plain = folder / "plain.onnx"
    io.save(model(rows, weights, {"x": ["batch", *SHAPE[1:]]}, ["y"]), plain)
    found = {"float": plain}
    for name, style in (("operators", QuantFormat.QOperator), ("pairs", QuantFormat.QDQ)):
        found[name] = folder / f"{name}.onnx"
        quantize_static(plain, found[name], Reader(), quant_format=style)
    found["dynamic"] = folder / "dynamic.onnx"
    quantize_dynamic(plain, found["dynamic"], op_types_to_quantize=["MatMul"],
                     weight_type=QuantType.QInt8)  # fmt: skip
    return found


def opened(files, name):
    return open_version(files[name], data=DATA, target="cpu-vnni")


def timed(monkeypatch, mine: float, other: float = 1.0) -> list[int]:
    """The original takes 1, the model of its own formats `mine`, what else was found `other`."""
    asked = []

    def relative(sessions, served, *_, **__):
        asked.append(len(sessions))
        return [[value] * len(served) for value in (1.0, mine, other)]

    monkeypatch.setattr(own_formats, "relative_times", relative)
    return asked


def unchanged(work) -> Plan:
    from lwqc.decide import planning

    return planning.unchanged(work, "auto")


def signed(graph: ir.Graph) -> set[str]:
    """Operators that read int8 activations."""
    return {
        node.op_type
        for node in graph
        if node.op_type.startswith(("QLinear", "MatMulInteger", "QGemm"))
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.INT8
    }


@pytest.mark.parametrize("name", ["operators", "pairs", "dynamic"])
def test_faster_kernels_are_taken_for_the_formats_that_are_there(files, monkeypatch, name):
    asked = timed(monkeypatch, 0.1)
    work = opened(files, name)
    plan = own_formats.with_own_formats(work, unchanged(work), 0.01)
    assert asked == [3]
    assert plan.restore is not None
    assert plan.recipe == "auto"
    assert own_formats._TAKEN in plan.notes
    done = execute(work, Goals(), plan)
    assert not signed(done.model.graph)
    read = Plan.model_validate_json(plan.model_dump_json())  # without the digest, which comes later
    again = apply_plan(opened(files, name), read, allow_drift=True)
    assert io.serialized_bytes(again.model) == io.serialized_bytes(done.model)
    for feeds in DATA:
        wanted, found = work.original.session(feeds)["y"], work.job.load(done.model)(feeds)["y"]
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_auto_asks_for_it(files, monkeypatch):
    timed(monkeypatch, 0.1)
    plan = allocate(opened(files, "operators"), Goals(), find("auto"))
    assert plan.restore is not None


@pytest.mark.parametrize("goals", [Goals(max_size=0.9), Goals(max_latency=0.5)])
def test_budgets_are_met_by_other_means(files, monkeypatch, goals):
    monkeypatch.setattr(own_formats, "lower_plan", None)
    assert allocate(opened(files, "dynamic"), goals, find("knapsack")).restore is None


def test_what_is_no_faster_stays_as_it_was(files, monkeypatch):
    work = opened(files, "operators")
    before = unchanged(work)
    timed(monkeypatch, 0.99)
    assert own_formats.with_own_formats(work, before, 0.01) == before
    timed(monkeypatch, 1.2, 2.0)  # slower than the original
    assert own_formats.with_own_formats(work, before, 0.01) == before
    timed(monkeypatch, 0.5, 0.4)  # slower than what else was found
    assert own_formats.with_own_formats(work, before, 0.01) == before


def test_what_loses_too_much_is_not_even_timed(files, monkeypatch):
    work, asked = opened(files, "operators"), timed(monkeypatch, 0.1)
    monkeypatch.setattr(own_formats, "full_drop", lambda *_: 0.02)
    assert own_formats.with_own_formats(work, unchanged(work), 0.01) == unchanged(work)
    assert asked == []


def test_bytes_that_were_asked_for_do_not_grow(files, monkeypatch):
    work, asked = opened(files, "operators"), timed(monkeypatch, 0.1)
    sizes = iter([1001, 1000])
    monkeypatch.setattr(own_formats.io, "serialized_bytes", lambda model: next(sizes))
    assert own_formats.with_own_formats(work, unchanged(work), 0.01, small=True).restore is None
    assert asked == []


def test_float_models_are_none_of_its_business(files, monkeypatch):
    monkeypatch.setattr(own_formats, "lower_plan", None)
    work = opened(files, "float")
    assert own_formats.with_own_formats(work, unchanged(work), 0.01) == unchanged(work)


def test_why_it_was_not_tried_is_told(files, monkeypatch):
    work = opened(files, "operators")

    def failing(work):
        raise InputError("no such thing")

    monkeypatch.setattr(own_formats, "lower_plan", failing)
    (note,) = own_formats.with_own_formats(work, unchanged(work), 0.01).notes
    assert note.endswith("were not tried in other kernels: no such thing")
    monkeypatch.setattr(type(work), "is_large", property(lambda self: True))
    (note,) = own_formats.with_own_formats(work, unchanged(work), 0.01).notes
    assert note.endswith("as it is large: lwqc lower does")
