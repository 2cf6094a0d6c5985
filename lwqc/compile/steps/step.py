"""What a step of a plan is: a field of `Plan`, and one file here that does it and words it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import onnx_ir as ir

from lwqc.backends.target import Lowered
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan

Looks = Literal["data", "random"]  # at the caller's data, or at random inputs


@dataclass(frozen=True)
class Made:
    """A model on its way through a plan.

    work: as it was opened. plan: with what steps found out. version: as far as statistics are taken
    on it. model: what formats are applied to. own_weights: encoded ones, where they are not the
    version's. found: what steps made beside a model, by field of the plan. lowered: what became of
    the model for the target, for steps that come after that.
    """

    work: Version
    plan: Plan
    version: Version
    model: ir.Model
    own_weights: EncodedWeights | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    lowered: Lowered | None = None

    @property
    def weights(self) -> EncodedWeights:
        """Encoded weights of the model."""
        return self.version.weights if self.own_weights is None else self.own_weights

    def on(self, version: Version, **found: Any) -> Made:
        """The same on another version."""
        return replace(self, version=version, model=version.model, found={**self.found, **found})

    def check_sites(self, names: Collection[str]) -> None:
        """Raises InputError for a name that no site has."""
        unknown = sorted(set(names) - set(self.version.sites))
        if unknown:
            raise InputError(f"the plan names sites that the model does not have: {unknown[0]}")


def _nothing(plan: Plan) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Step:
    """One step; steps are done in the order of the fields of `Plan`.

    run: does what the plan says. text: lines on it for readers. short: the same in a few words, or
    "". looks: what its statistics are taken on, nothing where it takes none. late: done to what the
    model became for the target.
    """

    field: str
    run: Callable[[Made], Made]
    text: Callable[[Plan], Iterable[str]]
    short: Callable[[Plan], str] = lambda plan: ""
    looks: Callable[[Plan], Iterable[Looks]] = _nothing
    late: bool = False

    def wanted(self, plan: Plan) -> bool:
        """Whether the plan has it."""
        value = getattr(plan, self.field)
        return value is not None and value not in ((), {})
