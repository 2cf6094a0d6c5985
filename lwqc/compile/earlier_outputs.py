"""What earlier steps of a chain did to the outputs of the original."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.compile.version import Version


def gone_outputs(work: Version) -> frozenset[str]:
    """Outputs of the original that an earlier step took away."""
    return frozenset(_types(work.original.model)) - set(_types(work.begun.model))


def retyped_outputs(work: Version) -> bool:
    """Whether an earlier step gave outputs another type."""
    before = _types(work.original.model)
    return any(dtype != before[name] for name, dtype in _types(work.begun.model).items())


def _types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {v.name or "": v.dtype for v in model.graph.outputs}
