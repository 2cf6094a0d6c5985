"""Whether a model is still what it was, found by looking at it and not by asking the pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.passes.graph_text import content, to_text


@dataclass(frozen=True)
class _Stored:
    """A larger tensor. digest: of an array that can be written to in place; empty for others."""

    tensor: ir.TensorProtocol
    digest: bytes

    def same(self, other: _Stored) -> bool:
        """Whether both hold the same numbers; their type and shape are part of the text."""
        if self.tensor is other.tensor:
            return self.digest == other.digest
        return content(self.tensor) == content(other.tensor)


class Snapshot:
    """A model at one moment: its graph as text, and the tensors that the text does not write out.

    What nothing reads, names and noted types of values inside, and the order of nodes are no part
    of it. No weight is copied: one is the same where it is the same tensor, and numbers are read
    only where another tensor took its place, or where the tensor's own array can be written to.
    """

    def __init__(self, model: ir.Model) -> None:
        self._stored: list[_Stored] = []
        self._text = to_text(model, self._store)
        self._opsets = dict(model.opset_imports)

    def _store(self, tensor: ir.TensorProtocol) -> str:
        self._stored.append(_Stored(tensor, _digest(tensor)))
        return ""

    def differs(self, model: ir.Model) -> bool:
        """Whether a model computes by other nodes, with other numbers, than this one did."""
        now = Snapshot(model)
        return (
            self._text != now._text
            or self._opsets != now._opsets
            or not all(a.same(b) for a, b in zip(self._stored, now._stored, strict=True))
        )


def _digest(tensor: ir.TensorProtocol) -> bytes:
    flags = getattr(tensor.raw, "flags", None)
    if isinstance(tensor, ir.LazyTensor) or flags is None or not flags.writeable:
        return b""
    return hashlib.blake2b(content(tensor), digest_size=16).digest()
