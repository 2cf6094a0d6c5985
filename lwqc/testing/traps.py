"""Models in which rewrites go wrong, for every pass to be tried on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from lwqc.model import io
from lwqc.passes.base import name_of
from lwqc.passes.soundness import faults
from lwqc.testing.outputs import TOLERANCE, Feeds, assert_same_outputs
from lwqc.testing.rewrites import applied
from lwqc.testing.text import AnyModel, as_model, model_of, to_text

_OPSET_21 = '<ir_version: 10, opset_import: ["": 21]>\n'
_FUNCTION = '<ir_version: 10, opset_import: ["": 20, "mine": 1]>\n'


@dataclass(frozen=True)
class Trap:
    """One model. what: in which way it is odd. stored: inputs of the text that are weights."""

    what: str
    text: str
    stored: tuple[str, ...] = ()
    external: bool = False

    def model(self, folder: Path | None = None) -> ir.Model:
        """A new one. folder: for weights of a model whose weights lie in a file of their own."""
        built = model_of(self.text, self.stored)
        if not self.external or folder is None:
            return built
        io.save(built, folder / "trap.onnx", external_data=True)
        return io.load(folder / "trap.onnx")


TRAPS: Mapping[str, Trap] = MappingProxyType(
    {
        "shared-weight": Trap(
            "one weight, two readers",
            """g (float[m,64] x, float[64,64] w) => (float[m,64] y) {
                h = MatMul(x, w)
                r = Relu(h)
                y = MatMul(r, w)
            }""",
            ("w",),
        ),
        "result-and-output": Trap(
            "a value that nodes read is an output of the graph too",
            """g (float[m,64] x, float[64,48] w) => (float[m,48] h, float[m,48] y) {
                h = MatMul(x, w)
                y = Relu(h)
            }""",
            ("w",),
        ),
        "many-readers": Trap(
            "a value that layers and other nodes read",
            """g (float[m,64] x, float[64,48] a, float[64,48] b) => (float[m,48] y) {
                r = Relu(x)
                p = MatMul(r, a)
                q = MatMul(r, b)
                s = Add(p, q)
                t = ReduceSum(r)
                y = Add(s, t)
            }""",
            ("a", "b"),
        ),
        "wide-bias": Trap(
            "a bias with two dimensions",
            """g (float[m,64] x, float[64,48] w, float[1,48] b) => (float[m,48] y) {
                y = Gemm(x, w, b)
            }""",
            ("w", "b"),
        ),
        "symbolic-sizes": Trap(
            "sizes that are names, and shape arithmetic on them",
            """g (float[batch,sequence,64] x, float[64,48] w) => (float[batch,sequence,48] y) {
                h = MatMul(x, w)
                s = Shape(x)
                t = Shape<start = 2>(h)
                i = Constant<value = int64[2] {0, 1}>()
                u = Gather(s, i)
                v = Concat<axis = 0>(u, t)
                y = Reshape(h, v)
            }""",
            ("w",),
        ),
        "if-body": Trap(
            "bodies that read a weight and an input from around them, with the same names inside",
            """g (float[m,64] x, bool c, float[64,48] w) => (float[m,48] y) {
                y = If(c) <
                    then_branch = a () => (float[m,48] p) { q = MatMul(x, w)
                        p = Relu(q) },
                    else_branch = b () => (float[m,48] p) { q = MatMul(x, w)
                        p = Tanh(q) }
                >
            }""",
            ("w",),
        ),
        "empty-input": Trap(
            "an optional input that is left out, in front of one that is not",
            """g (float[m,8] x) => (float[m,8] y) {
                hi = Constant<value = float {0.5}>()
                y = Clip(x, , hi)
            }""",
        ),
        "input-is-output": Trap(
            "outputs that nothing computes",
            """g (float[m,8] x, float[8] w) => (float[m,8] y, float[8] z) {
                y = Identity(x)
                z = Identity(w)
            }""",
            ("w",),
        ),
        "unused": Trap(
            "a node, a weight and an output of a node that nothing reads",
            """g (float[m,8] x, float[8] w) => (float[m,4] y) {
                n = Add(x, w)
                y, rest = Split<axis = 1, num_outputs = 2>(x)
            }""",
            ("w",),
        ),
        "four-bits": Trap(
            "a weight of 4 bits",
            _OPSET_21
            + """g (float[m,2] x, int4[2,4] w) => (float[m,4] y) {
                s = Constant<value = float {0.5}>()
                d = DequantizeLinear(w, s)
                y = MatMul(x, d)
            }""",
            ("w",),
        ),
        "function": Trap(
            "a node that is a function of the model",
            _FUNCTION
            + """g (float[m,8] x, float[8,8] w) => (float[m,8] y) {
                h = mine.twice(x)
                y = MatMul(h, w)
            }
            <domain: "mine", opset_import: ["": 20]>
            twice (a) => (b) {
                b = Add(a, a)
            }""",
            ("w",),
        ),
        "external-data": Trap(
            "weights in a file of their own",
            """g (float[m,64] x, float[64,48] w) => (float[m,48] y) {
                y = MatMul(x, w)
            }""",
            ("w",),
            external=True,
        ),
    }
)


def assert_survives(step: ir.passes.PassBase, trap: Trap, folder: Path | None = None) -> bool:
    """Assert that a pass does a model no harm; returns whether it changed it.

    That is: the result is valid; names, types and ranks of inputs and outputs are as before; a
    second run changes nothing; if nothing is said to have changed, nothing has; and the outputs are
    the same, if the pass is `exact`. The model that the caller holds is not changed.

    Raises AssertionError that names the pass and the trap.
    """
    model = trap.model(folder)
    assert_harmless(step, model, f"{name_of(step)} on {trap.what}")
    return applied(step, model).changes > 0


def assert_harmless(
    step: ir.passes.PassBase,
    given: AnyModel,
    label: str = "",
    *,
    feeds: Feeds | Iterable[Feeds] | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """The same on any model. label: for messages. feeds: made up by default."""
    model = as_model(given)
    label = label or name_of(step)
    before, signature = to_text(model), _signature(model)
    done = applied(step, model)
    assert to_text(model) == before, f"{label}: changed what its copy was made of"
    new = [fault for fault in faults(done.model) if fault not in faults(model)]
    assert not new, f"{label}: made an invalid model: {new[0]}"
    assert _signature(done.model) == signature, f"{label}: changed inputs or outputs"
    again = applied(step, done.model)
    assert not again.changes, f"{label}: changed its own result"
    if getattr(step, "exact", False) and done.changes:
        assert_same_outputs(model, done.model, feeds, tolerance=tolerance)


def _signature(model: ir.Model) -> list[tuple[str | None, ir.DataType | None, int | None]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(v.name, v.dtype, None if v.shape is None else len(v.shape)) for v in values]
