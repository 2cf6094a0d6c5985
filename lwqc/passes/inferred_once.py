"""Shape inference of a node that is not done again where nothing of it has changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

_INFER = "_do_inference"
_KEY = "lwqc.inferred"
_FEW = 20  # numbers of a constant that onnxscript's inference looks at


@contextlib.contextmanager
def inferred_once() -> Iterator[None]:
    """Let onnxscript's optimizer infer each node once, until what it reads or says is another.

    onnxscript 0.7.2 infers every node whenever it folds constants, which is a sixth of the time of
    a clean-up that folds three times. A version without that method is used as it is.
    """
    from onnxscript.optimizer import _constant_folding as folding

    infer = getattr(folding.FoldConstantsPass, _INFER, None)
    if infer is None or hasattr(infer, "__wrapped__"):
        yield
        return

    def once(self: Any, node: ir.Node) -> None:
        opsets: dict[str, int] = getattr(self, "_opset_imports", {})
        if node.meta.get(_KEY) != _known_of(node, opsets):
            infer(self, node)
            node.meta[_KEY] = _known_of(node, opsets)

    once.__dict__["__wrapped__"] = infer
    setattr(folding.FoldConstantsPass, _INFER, once)
    try:
        yield
    finally:
        setattr(folding.FoldConstantsPass, _INFER, infer)


def _known_of(node: ir.Node, opsets: dict[str, int]) -> tuple[object, ...]:
    """What its inference depends on, and what came of it."""
    return (
        opsets.get(node.domain),
        tuple(node.attributes.values()),
        tuple(None if v is None else (v.name, _told(v), _numbers(v)) for v in node.inputs),
        tuple((v.name, _told(v)) for v in node.outputs),
    )


def _told(value: ir.Value) -> tuple[object, ...]:
    return value.type, None if value.shape is None else tuple(value.shape)


def _numbers(value: ir.Value) -> object:
    """The tensor itself, which is compared by identity; none where it is not looked at."""
    tensor = value.const_value
    return tensor if tensor is not None and tensor.size <= _FEW else None
