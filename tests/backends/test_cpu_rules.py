"""Integers are stored as each processor's kernels need them, whichever processor this is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import ARM, AVX2, RULES, VNNI, probed, sums_saturate
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session
from models import digits, stdlib_lm
from models.training import FOLDER

STORED = {"cpu-vnni": (-128, 127), "cpu-avx2": (-64, 63), "cpu-arm": (-128, 127)}
LARGEST_PAIR = 2**15 - 1  # of two products, where they are summed in 16 bits


def codes(model: ir.Model) -> list[np.ndarray]:
    stored = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return [t.numpy() for t in stored if t.dtype == ir.DataType.INT8 and len(t.shape) > 1]


def zero_types(model: ir.Model) -> set[ir.DataType | None]:
    nodes = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    return {n.inputs[2].dtype for n in nodes if n.inputs[2] is not None}


@pytest.mark.parametrize("target", RULES)
def test_a_convolution_network(target):
    done = lwqc.compress(
        digits.MODEL,
        target=target,
        recipe="w8a8-static",
        data=list(digits.calibration()),
        metric=digits.accuracy,
    )
    low, high = STORED[target]
    found = codes(done.model)
    assert found
    assert min(int(c.min()) for c in found) >= low
    assert low / 2 > min(int(c.min()) for c in found) or high / 2 < max(int(c.max()) for c in found)
    assert max(int(c.max()) for c in found) <= high
    signed = target == "cpu-arm"
    assert zero_types(done.model) == {ir.DataType.INT8 if signed else ir.DataType.UINT8}
    assert done.plan.target == target
    assert digits.accuracy(Session(done.model)) > 0.985


@pytest.mark.parametrize("target", RULES)
def test_a_decoder(target, tmp_path):
    feeds = [{k: v[:1, :64] for k, v in next(iter(stdlib_lm.calibration())).items()}]
    path = FOLDER / "stdlib_lm.onnx"
    done = lwqc.compress(path, target=target, recipe="w8a8-static", data=feeds)
    report = done.save(tmp_path / "o.onnx")
    assert report.divergence["logits"].cosine_mean > 0.99
    assert {row.kernel for row in report.sites} >= {"MatMulInteger"}
    low, high = STORED[target]
    assert all(low <= c.min() and c.max() <= high for c in codes(done.model))


def test_pairs_of_products_do_not_saturate_without_vnni():
    low, high = STORED["cpu-avx2"]
    assert 2 * 255 * max(-low, high) <= LARGEST_PAIR < 2 * 255 * 127


def test_eight_bits_are_refused_without_vnni():
    site = next(iter(find_sites(lwqc.load(digits.MODEL)).sites))
    entry = SiteEntry(weight=WeightFormat(8), activation="static")
    reason = CpuTarget(AVX2).form(site, entry, 20)
    assert "saturate" in reason
    assert CpuTarget(AVX2).refuses(reason)
    seven = SiteEntry(weight=WeightFormat(7), activation="static")
    assert CpuTarget(AVX2).form(site, seven, 20) == CpuTarget(VNNI).form(site, entry, 20)


@pytest.mark.parametrize(
    ("machine", "saturates", "rules"),
    [
        ("x86_64", False, VNNI),
        ("AMD64", True, AVX2),
        ("aarch64", True, ARM),
        ("ARM64", False, ARM),
        ("riscv64", False, VNNI),
    ],
)
def test_processors_are_told_apart(machine, saturates, rules):
    assert probed(machine, lambda: saturates) is rules


def test_this_processor_is_told_by_what_it_computes():
    """A quantized convolution of the largest values is off exactly where sums saturate."""
    channels = 64
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[1, {channels}, 4, 4] x, int8[16, {channels}, 1, 1] w)
            => (uint8[1, 16, 4, 4] y)
        <float one = {{1.0}}, float far = {{16384.0}},
         uint8 zero = {{0}}, int8 weight_zero = {{0}}> {{
            y = QLinearConv(x, one, zero, w, one, weight_zero, far, zero)
        }}"""
    )
    weight = np.full((16, channels, 1, 1), 127, np.int8)
    image = np.full((1, channels, 4, 4), 255, np.uint8)
    found = Session(model)({"x": image, "w": weight})["y"]
    exact = round(255 * 127 * channels / 16384)
    assert bool((found != exact).any()) is sums_saturate()
    assert probed("x86_64") is (AVX2 if sums_saturate() else VNNI)


def test_an_unknown_processor():
    with pytest.raises(InputError, match="cpu-avx2"):
        lwqc.compress(digits.MODEL, target="cpu-6502")


def test_times_here_say_nothing_of_processors_with_other_kernels(monkeypatch):
    from lwqc.backends.cpu import CpuTarget

    targets = {name: CpuTarget(rules) for name, rules in RULES.items()}
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert {name for name, target in targets.items() if target.unmeasured()} == {"cpu-arm"}
    assert "x86_64" in targets["cpu-arm"].unmeasured()
    for arm in ("aarch64", "arm64"):
        monkeypatch.setattr("platform.machine", lambda arm=arm: arm)
        assert not any(target.unmeasured() for target in targets.values())
