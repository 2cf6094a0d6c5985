"""Hard swishes, hard sigmoids and stored numbers between convolutions stay in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.backends.cpu import CpuTarget
from lwqc.backends.cpu_rules import ARM, VNNI
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session, SessionSettings, optimized_graph
from tests.build import Row, model

CHANNELS = 4
ONE = np.ones((CHANNELS, 1, 1, 1), np.float32)  # its code is 127, its scale 1 / 127
WEIGHTS = {
    "w_in": ONE,
    "w_out": ONE,
    "number": np.float32(-0.75),
    "row": np.asarray([1.5], np.float32),
}
GROUPS = {"group": CHANNELS}
FIRST: Row = ("Conv", ["x", "w_in"], "c", GROUPS)
LAST: Row = ("Conv", ["a", "w_out"], "y", GROUPS)
END: Row = ("Abs", ["y"], "z", {})
RANGE = (-6.0, 7.0)


def hard_sigmoid(x, alpha=1 / 6, beta=0.5):
    return np.clip(alpha * x + beta, 0, 1)


def on_grid(x, low):
    """x on the grid of 256 steps from low to the end of the range; 0 is on it."""
    step = (RANGE[1] - low) / 255
    return np.round(x / step) * step


SWISHES = ("hard swish", "gated")
BETWEEN = {
    "hard swish": ([("HardSwish", ["c"], "a", {})], lambda x: x * hard_sigmoid(x)),
    "gated": (
        [
            ("HardSigmoid", ["c"], "g", {"alpha": 1 / 6, "beta": 0.5}),
            ("Mul", ["c", "g"], "a", {}),
        ],
        lambda x: x * hard_sigmoid(x),
    ),
    "hard sigmoid": ([("HardSigmoid", ["c"], "a", {})], lambda x: hard_sigmoid(x, 0.2)),
    "and something else": (
        [
            ("HardSigmoid", ["c"], "g", {"alpha": 0.25, "beta": 0.25}),
            ("Add", ["c", "g"], "a", {}),
        ],
        lambda x: x + hard_sigmoid(x, 0.25, 0.25),
    ),
    "sum with a number": ([("Add", ["number", "c"], "a", {})], lambda x: x - 0.75),
    "product with a number": ([("Mul", ["c", "row"], "a", {})], lambda x: x * 1.5),
}


def lowered(name: str, rules=VNNI):
    """The model, what it computes of x, and the step of the grid of its result."""
    rows, function = BETWEEN[name]
    x = np.linspace(*RANGE, 4 * 256, dtype=np.float32).reshape(1, CHANNELS, 16, 16)
    values = function(x)
    ends = (min(0.0, float(values.min())), max(0.0, float(values.max())))
    net = model([FIRST, *rows, LAST, END], WEIGHTS, {"x": list(x.shape)}, ["z"])
    ranges = {n: ActivationRange(low=RANGE[0], high=RANGE[1]) for n in ("x", "c")}
    ranges |= {n: ActivationRange(low=ends[0], high=ends[1]) for n in ("a", "y")}
    ranges["g"] = ActivationRange(low=0.1, high=0.9)  # what was seen; codes saturate at 0 and 1
    entry = SiteEntry(weight=WeightFormat(8), activation="static", search=False)
    plan = Plan(source=Source(), quantize={"w_in": entry, "w_out": entry}, activations=ranges)
    made = CpuTarget(rules).lower(net, plan, EncodedWeights(net, io.read_array)).model
    least = -3.0 if name in SWISHES else RANGE[0]  # of the grid of c; below, both are 0
    rounded = np.maximum(on_grid(on_grid(x, RANGE[0]), least), least)
    return made, {"x": x}, np.abs(function(rounded)), (ends[1] - ends[0]) / 255


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("rules", [VNNI, ARM], ids=["unsigned", "signed"])
def test_errors_are_within_a_step_of_the_output_grid(name, rules):
    net, feeds, exact, step = lowered(name, rules)
    error = (Session(net, SessionSettings(optimize=False))(feeds)["z"] - exact) / step
    # Rounding alone is off by 0.5 at most and 0.29 on average; a gate adds little, but for a hard
    # sigmoid that a convolution writes, whose middle lies between two codes.
    assert np.abs(error).max() <= 1.0
    assert np.sqrt((error**2).mean()) <= (0.4 if name == "hard sigmoid" else 0.3)


@pytest.mark.parametrize("name", BETWEEN)
def test_kernels_that_run_are_integer_ones(name):
    operators = [node.op_type for node in optimized_graph(lowered(name)[0]).node]
    assert operators.count("QLinearConv") == 2
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 1
    assert not {"HardSigmoid", "HardSwish", "Mul", "Add"} & set(operators)


def test_a_convolution_writes_the_hard_sigmoid_that_alone_reads_it():
    operators = [node.op_type for node in optimized_graph(lowered("hard sigmoid")[0]).node]
    assert sorted(o for o in operators if o.startswith("QLinear")) == ["QLinearConv"] * 2


@pytest.mark.parametrize("name", SWISHES)
def test_no_codes_are_spent_where_the_result_is_zero(name):
    net = lowered(name)[0]
    steps = {
        round(255 * float(node.inputs[1].const_value.numpy()), 4)
        for node in net.graph
        if node.op_type == "QuantizeLinear"
        and node.inputs[0].producer() is not None
        and node.inputs[0].producer().op_type == "Conv"
    }
    assert 3.0 + RANGE[1] in steps  # and not what was seen, from -6


def test_optimized_and_plain_sessions_agree():
    net, feeds, _, step = lowered("hard swish")
    fused = Session(net)(feeds)["z"]
    plain = Session(net, SessionSettings(optimize=False))(feeds)["z"]
    # A tie may be rounded the other way: a code of c, which is 2.1 steps of the result at most.
    assert np.abs(fused - plain).max() <= 3.1 * step
    assert np.abs(fused - plain).mean() <= 0.1 * step
