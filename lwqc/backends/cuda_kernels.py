"""Which operators the CUDA execution provider has kernels for, and in which types.

The table was written by the runtime itself (onnxruntime-gpu 1.31.1); a test compares it with the
installed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import onnx
import onnx_ir as ir

from lwqc.graph.float_slots import operator_schema


@dataclass(frozen=True)
class _Kernel:
    """first, last: versions of the operator. types: allowed ones by type variable."""

    first: int
    last: int | None
    types: Mapping[str, frozenset[str]]

    def runs(self, since: int, bound: Mapping[str, str]) -> bool:
        """Whether it runs version `since` of the operator with these types."""
        fits = since == self.first if self.last is None else self.first <= since <= self.last
        return fits and all(bound[v] in known for v, known in self.types.items() if v in bound)


@dataclass(frozen=True)
class _Table:
    kernels: Mapping[tuple[str, str], tuple[_Kernel, ...]]
    operands: Mapping[tuple[str, str], tuple[str, ...]]


def missing_kernel(node: ir.Node, opset: int, dtype: ir.DataType | None = None) -> str:
    """Why the CUDA provider has no kernel for a node, or "".

    dtype: to ask for the node with its float32 operands in this type.
    """
    table = _table()
    kernels = table.kernels.get((node.domain, node.op_type))
    if kernels is None:
        return f"CUDA has no kernel of {node.op_type}"
    schema = operator_schema(node.op_type, opset, node.domain)
    since = schema.since_version if schema is not None else 1
    bound = _bound(node, schema, table.operands.get((node.domain, node.op_type), ()), dtype)
    if any(kernel.runs(since, bound) for kernel in kernels):
        return ""
    types = ", ".join(sorted(set(bound.values())))
    return f"CUDA has no kernel of {node.op_type} (version {since}) for {types}"


def _bound(
    node: ir.Node,
    schema: onnx.defs.OpSchema | None,
    operands: tuple[str, ...],
    dtype: ir.DataType | None,
) -> dict[str, str]:
    """Element type by type variable, as far as the model tells."""
    bound: dict[str, str] = {}
    if schema is not None:
        inputs, outputs = _variables(schema.inputs), _variables(schema.outputs)
    else:
        inputs, outputs = list(operands), []
    for values, variables in ((node.inputs, inputs), (node.outputs, outputs)):
        for i, value in enumerate(values):
            if value is None or value.dtype is None or not variables:
                continue
            actual = value.dtype
            if dtype is not None and actual == ir.DataType.FLOAT:
                actual = dtype
            bound.setdefault(variables[min(i, len(variables) - 1)], _name(actual))
    return bound


def _variables(formal: object) -> list[str]:
    return [str(slot.type_str) for slot in formal]  # type: ignore[attr-defined]


def _name(dtype: ir.DataType) -> str:
    return dtype.name.lower()


@cache
def _table() -> _Table:
    kernels: dict[tuple[str, str], list[_Kernel]] = {}
    operands: dict[tuple[str, str], tuple[str, ...]] = {}
    for domain, op, *rest in _rows():
        if domain == "operands":
            operands[(op, rest[0])] = tuple(rest[1].split(",")) if len(rest) > 1 else ()
            continue
        first, last = rest[0].split("-")
        types = (part.split("=") for part in rest[1:])
        kernel = _Kernel(
            int(first),
            int(last) if last else None,
            {variable: frozenset(names.split(",")) for variable, names in types},
        )
        kernels.setdefault(("" if domain == "ai.onnx" else domain, op), []).append(kernel)
    return _Table({key: tuple(rows) for key, rows in kernels.items()}, operands)


def _rows() -> Iterator[list[str]]:
    text = (resources.files("lwqc.backends") / "cuda_kernels.txt").read_text()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield line.split()
