"""Gradients of single operators against finite differences."""

import re

import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from lwqc.learn.to_torch import module_of  # noqa: E402
from tests.learn.operators import built, drawn  # noqa: E402
from tests.learn.test_operators import CASES, EARLIER, LATER  # noqa: E402

# Steps, whose gradients are those of no rounding, and floats that other types do not go with.
STEPS = {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits"}
ONE_TYPE = {"Cast to half", "QLinearConv"}
# Nothing comes out that moves with what goes in.
FLAT = {
    "ArgMax", "ArgMin", "Cast", "CastLike", "ConstantOfShape", "Equal of floats", "EyeLike",
    "Greater of floats", "GreaterOrEqual of floats", "HannWindow", "Hardmax", "IsInf", "IsNaN",
    "Less of floats", "LessOrEqual of floats", "NonZero", "Pow of integers", "QLinearAdd",
    "QLinearMatMul", "Range of floats", "Shape", "Size",
}  # fmt: skip
SMOOTH = [
    pytest.param(body, opset, id=f"{name}-{opset}")
    for cases, opset in ((CASES, 20), (LATER, 23), (EARLIER, 11))
    for name, body in cases.items()
    if name not in STEPS | ONE_TYPE | FLAT and "float" in body
]


@pytest.mark.parametrize(("body", "opset"), SMOOTH)
def test_gradients_are_what_finite_differences_say(body, opset):
    model = built(re.sub(r"\bfloat\b", "double", body), opset=opset)
    module = module_of(model)
    feeds = {name: torch.from_numpy(array) for name, array in drawn(model).items()}
    names = [name for name, value in feeds.items() if value.is_floating_point()]

    def run(*values):
        made = module.values(feeds | dict(zip(names, values, strict=True))).values()
        return tuple(v for v in made if v.is_floating_point() and v.requires_grad)

    given = [feeds[name].requires_grad_() for name in names]
    torch.autograd.gradcheck(run, given, eps=1e-6, atol=1e-5, fast_mode=True)


def test_gradients_go_straight_through_rounding_but_not_out_of_range():
    stored = "s = Constant<value_float = 0.5>() z = Constant<value = int8 {3}>()"
    model = built(
        f"float[4] x -> float y: {stored} q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    )
    x = torch.tensor([0.3, -1.2, 1e3, -1e3], requires_grad=True)
    module_of(model)(x)["y"].sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
