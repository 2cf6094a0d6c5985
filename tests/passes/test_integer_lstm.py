"""LSTM with 8-bit weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import quantize_dynamic

import lwqc
from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import AVX2, VNNI
from lwqc.graph.cost import node_costs, total
from lwqc.graph.shapes import shapes_at
from lwqc.model import io
from lwqc.passes.restore_floats import RestoreFloats, is_quantized
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session
from tests.build import Row, model, normal

STEPS, BATCH, INPUT, HIDDEN = 6, 2, 24, 32


def recurrent(directions=1, operator="LSTM", **attributes):
    gates = {"LSTM": 4, "GRU": 3}[operator] * HIDDEN
    weights = {
        "w": normal(directions, gates, INPUT, seed=1, scale=0.2),
        "r": normal(directions, gates, HIDDEN, seed=2, scale=0.2),
        "b": normal(directions, 2 * gates, seed=3, scale=0.1),
    }
    way = "bidirectional" if directions == 2 else "forward"
    row: Row = (operator, ["x", "w", "r", "b", "", "h"], "y",
                {"hidden_size": HIDDEN, "direction": way, **attributes})  # fmt: skip
    sizes: dict[str, list[int | str]] = {
        "x": ["steps", "batch", INPUT],
        "h": [directions, "batch", HIDDEN],
    }
    return model([row], weights, sizes, ["y"])


def feeds(directions=1, count=3):
    return [
        {"x": normal(STEPS, BATCH, INPUT, seed=i), "h": normal(directions, BATCH, HIDDEN, seed=9)}
        for i in range(count)
    ]


def saved(result, path: Path):
    return result.save(path), io.load(path)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_both_weights_are_read_as_codes(directions, activations, tmp_path):
    net = recurrent(directions)
    small = lwqc.quantize(net, bits=8, activations=activations, data=feeds(directions))
    report, made = saved(small, tmp_path / "small.onnx")
    assert {row.name: row.kernel for row in report.sites} == dict.fromkeys(
        "wr", "DynamicQuantizeLSTM"
    )
    assert report.divergence["y"].error < 0.01
    (node,) = (n for n in made.graph if n.op_type == "DynamicQuantizeLSTM")
    assert node.inputs[1].shape == ir.Shape([directions, INPUT, 4 * HIDDEN])
    sizes = {"x": (STEPS, BATCH, INPUT), "h": (directions, BATCH, HIDDEN)}
    macs = [total(node_costs(m.graph, shapes_at(m, sizes))).known_macs for m in (net, made)]
    assert macs[0] == macs[1] > 0


def test_a_weight_whose_other_stays_float_is_unpacked(tmp_path):
    net = recurrent()
    plan = lwqc.plan(net, recipe="w8a8-dynamic", data=feeds()).model_copy()
    one = plan.model_copy(update={"quantize": {"w": plan.quantize["w"]}})
    report, made = saved(lwqc.apply(net, one, data=feeds(), allow_drift=True), tmp_path / "o.onnx")
    assert [row.kernel for row in report.sites if row.name == "w"] == ["Folded"]
    assert any(n.op_type == "LSTM" for n in made.graph)
    assert report.divergence["y"].error < 0.01


def test_what_the_kernel_does_not_compute_stays_an_lstm():
    target, entry = CpuTarget(VNNI), SiteEntry(weight=WeightFormat(8), activation="dynamic")

    def forms(net):
        return {target.form(site, entry, 20) for site in lwqc_sites(net)}

    assert forms(recurrent()) == {"DynamicQuantizeLSTM"}
    assert all("batch in front" in form for form in forms(recurrent(layout=1)))
    assert all("no integer kernel" in form for form in forms(recurrent(operator="GRU")))
    static = entry.model_copy(update={"activation": "static"})
    assert "in each step" in target.form(lwqc_sites(recurrent())[0], static, 20)
    assert "7 bits" in CpuTarget(AVX2).form(lwqc_sites(recurrent())[0], entry, 20)


def lwqc_sites(net):
    from lwqc.graph.sites import find_sites

    return find_sites(net).sites


@pytest.mark.parametrize("own", [True, False])
def test_it_becomes_float_again(own, tmp_path):
    """Of ours, and of onnxruntime's tool, which has one scale for a whole weight."""
    net, path = recurrent(), tmp_path / "small.onnx"
    if own:
        lwqc.quantize(net, bits=8, activations="dynamic", data=feeds()).save(path)
    else:
        lwqc.save(net, tmp_path / "float.onnx")
        quantize_dynamic(tmp_path / "float.onnx", path)
    made = io.load(path)
    assert is_quantized(made)
    RestoreFloats()(made)
    assert [n.op_type for n in made.graph] == ["LSTM"]
    assert not is_quantized(made)
    lwqc.save(made, tmp_path / "back.onnx")
    back = lwqc.verify(net, tmp_path / "back.onnx", data=feeds())["y"].error
    assert 0 < back < 0.01


@pytest.mark.parametrize("directions", [1, 2])
def test_torch_computes_it_and_fits_what_it_may(directions, tmp_path):
    torch = pytest.importorskip("torch", reason="compares with torch")
    net, path = recurrent(directions), tmp_path / "small.onnx"
    lwqc.quantize(net, bits=8, activations="dynamic", data=feeds(directions)).save(path)
    module, session = lwqc.to_torch(path), Session(io.load(path))
    (one,) = feeds(directions, count=1)
    found = module(**{n: torch.from_numpy(a) for n, a in one.items()})["y"]
    rounded = session(one)["y"]  # of inputs and states in 8 bits, which are floats in torch
    exact = Session(net)(one)["y"]
    assert np.abs(found.detach().numpy() - rounded).max() < 0.03
    assert np.abs(found.detach().numpy() - exact).max() < 0.03
    found.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
