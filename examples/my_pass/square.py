"""A pass of one's own: x * x as Pow(x, 2) is Mul(x, x)."""

import onnx_ir as ir
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.model.edit import insert_before, replace_node


class PowToMul(Pass):
    """Write squares as products.

    Matches: Pow of a float tensor with the stored exponent 2.
    Rewrites to: Mul of the tensor with itself. Exact.
    Refuses: exponents that are computed, and other exponents.
    """

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite every match of the main graph."""
        changes = 0
        for node in list(model.graph):
            if (node.domain, node.op_type) != ("", "Pow"):
                continue
            base, exponent = node.inputs
            stored = ir.convenience.get_const_tensor(exponent)
            if stored is None or stored.size != 1 or stored.numpy().item() != 2:
                ctx.refuse(node.outputs[0].name or "", "its exponent is not a stored 2")
                continue
            (square,) = insert_before(node, "Mul", [base, base], [f"{node.outputs[0].name}/square"])
            replace_node(node, square)
            changes += 1
        return changes
