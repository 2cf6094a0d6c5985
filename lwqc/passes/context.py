"""What passes know of the model that they work on, and what they report."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import onnx_ir as ir

from lwqc.graph.integers import Integers
from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import MOST_NAMES, declared_shapes, dynamic_dimensions
from lwqc.graph.sites import SiteAnalysis, find_sites
from lwqc.model.names import gather_names, own_values
from lwqc.model.refusal import Refusal
from lwqc.model.weights import static_shape, stored_tensor


class _Facts:
    """What is inferred of a model when it is first asked for; true until the model changes."""

    def __init__(self, model: ir.Model, shapes: Mapping[str, Sampled]) -> None:
        self._model = model
        self._kept = shapes

    @cached_property
    def declared(self) -> tuple[dict[str, Sampled], tuple[str, ...]]:
        return declared_shapes(self._model, self._kept)

    def kept_shapes(self) -> dict[str, Sampled]:
        """The shapes of what is there now and was there; nothing where some were not known."""
        if "declared" in self.__dict__ and self.declared[1]:
            return {}
        before = self.declared[0] if "declared" in self.__dict__ else self._kept
        if not before:
            return {}
        kept: dict[str, Sampled] = {}
        for value in own_values(self._model.graph):
            name, tensor = value.name or "", stored_tensor(value)
            known = before.get(name)
            if tensor is not None:
                known = Sampled(static_shape(tensor), static_shape(tensor))
            if known is not None:
                kept[name] = known
        return kept

    @cached_property
    def integers(self) -> Integers:
        return Integers(self._model.graph, self.declared[0])

    @cached_property
    def sites(self) -> SiteAnalysis:
        return find_sites(self._model)

    @cached_property
    def dimensions(self) -> int:
        return len(dynamic_dimensions(self._model.graph))

    @cached_property
    def names(self) -> set[str]:
        return gather_names(self._model)


class Context:
    """Facts about one model, kept until a pass reports a change, and the remarks of its passes.

    step: name of the pass that runs. refused: the first reason for each place. relaxed: what is not
    exact for every input and was written because options allow it, as `kind: place`.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.step = ""
        self.refused: dict[str, Refusal] = {}
        self.relaxed: list[str] = []
        self._facts = _Facts(model, {})

    @property
    def shapes(self) -> Mapping[str, Sampled]:
        """Sizes by name of the value at two settings of the dynamic dimensions."""
        return self._facts.declared[0]

    @property
    def integers(self) -> Integers:
        """Whole numbers that are known before the model runs."""
        return self._facts.integers

    @property
    def sites(self) -> SiteAnalysis:
        """Weights that can be quantized, with their readers."""
        return self._facts.sites

    def claim_names(self) -> None:
        """Let `unique_name` know the names that are taken in every scope."""
        _ = self._facts.names

    def untold_sizes(self) -> str:
        """Why sizes cannot be told from each other, or ""."""
        count = self._facts.dimensions
        if count <= MOST_NAMES:
            return ""
        return f"shapes: {count} dynamic dimensions, more than {MOST_NAMES}"

    def refuse(self, where: str, why: str) -> None:
        """Note why the running pass leaves a place as it is."""
        self.refused.setdefault(where, Refusal(where, why, self.step))

    def relax(self, where: str, kind: str) -> None:
        """Note that the running pass wrote something there that is not exact for every input."""
        self.relaxed.append(f"{kind}: {where}")

    def changed(self, *, keeps_sizes: bool = False) -> None:
        """Forget the facts: the model is another now.

        keeps_sizes: values that are left have the sizes that they had.
        """
        self._facts = _Facts(self.model, self._facts.kept_shapes() if keeps_sizes else {})
