"""Scripts for onnx-graphsurgeon as passes of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lwqc.frontends.graphsurgeon import as_pass
from lwqc.model.model_stream import skeleton
from lwqc.model.user_code import load_callable
from lwqc.passes.base import Pass, adopt
from lwqc.passes.context import Context


@dataclass(frozen=True)
class Graphsurgeon(Pass):
    """Run a function of yours on the model as an onnx-graphsurgeon graph.

    Matches: every model that graphsurgeon can hold, see `lwqc.frontends.graphsurgeon`.
    Rewrites to: what the function returns, or leaves in place where it returns None; weights that
        it does not read are not copied, and metadata stay.
    Refuses: functions that fail and results that are not valid ONNX, with an error.

    function: `module:function`; the current directory is importable.
    """

    exact: ClassVar[bool] = False
    function: str

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Run it. Raises InputError."""
        before = _written(model)
        result = as_pass(load_callable(self.function))(model).model
        if _written(result) == before and _weights(result) == _weights(model):
            return 0
        adopt(model, result)
        return 1


def _written(model: ir.Model) -> bytes:
    return skeleton(model).SerializeToString(deterministic=True)


def _weights(model: ir.Model) -> dict[str, int]:
    """Which tensor each initializer holds: what a script does not write to stays the same one."""
    return {name: id(value.const_value) for name, value in model.graph.initializers.items()}
