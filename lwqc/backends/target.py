"""What a target is: the rules and actions that turn a plan into a graph for one runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.sites import Site
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plan import Plan, SiteEntry

Form = Literal[
    "MatMulNBits",  # low-bit weights, float or per-block int8 activations
    "MatMulBnb4",  # NF4 and FP4 weights, float activations
    "GatherBlockQuantized",
    "MatMulInteger",  # 8-bit weights and activations
    "QLinearConv",
    "Folded",  # low-bit in the file, float kernel at run time
]


@dataclass(frozen=True)
class Lowered:
    """A model ready for a runtime.

    forms: site name -> how it was lowered.
    """

    model: ir.Model
    forms: Mapping[str, Form]


class Target(Protocol):
    """Everything that differs between runtimes."""

    name: str

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry would run here, or the reason why it cannot, as a plain sentence."""

    def candidates(self, site: Site, opset: int) -> Sequence[SiteEntry]:
        """Legal weight-only entries of a site, for the size allocators."""

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy of the model."""

    def misplaced(self, lowered: Lowered) -> dict[str, str]:
        """Sites for which the runtime did not choose the expected kernel, with what it chose."""


def illegal(site: Site, reason: str) -> InputError:
    """The error for a plan that asks for something its target cannot do."""
    return InputError(f"{site.name} ({site.op} {list(site.shape)}): {reason}")
