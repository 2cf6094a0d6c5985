"""Passes that a step of a plan runs: what they need is no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import onnx_ir as ir

from lwqc.errors import InputError

_FORMATS = "needs the formats of sites and their encoded weights"
_GATES = "adds inputs that only a search feeds"
# Name -> what it needs. In a text these stand for the pass that the plan brings.
PLANNED: Mapping[str, str] = MappingProxyType(
    {
        "block-dequantize": _FORMATS,
        "block-quantize": _FORMATS,
        "bnb4": _FORMATS,
        "fold-weights": _FORMATS,
        "gate-activations": _GATES,
        "gate-branches": _GATES,
        "gate-parallel": _GATES,
        "input-qdq": f"{_FORMATS}, and measured ranges",
        "insert-qdq": f"{_FORMATS}, and measured ranges",
        "integer-lstm": _FORMATS,
        "integer-matmul": f"{_FORMATS}, and measured ranges",
        "keep-together": "needs the sites with a branch beside the weight",
        "migrate-scales": "needs one factor for each channel, found on data",
        "rotate-stream": "needs the rotation of each stream",
        "row-dequantize": _FORMATS,
        "side-branch": _FORMATS,
        "slice-stream": "needs a basis of each stream, found on data",
        "sparsify": "needs the chosen sites and their Gram matrices",
    }
)


@dataclass(frozen=True)
class Planned(ir.passes.InPlacePass):
    """The place of a pass in a pipeline; the plan's step brings the pass itself."""

    name: str
    exact: ClassVar[bool] = False
    planned: ClassVar[bool] = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Raises InputError: nothing was brought."""
        raise InputError(
            f"{self.name} is run by a step of a plan: it {PLANNED[self.name]}; "
            "`lwqc plan` writes one and `lwqc apply` runs it"
        )
