"""One version of a model on its way: as it was given, cleaned up, with branches removed, ..."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import onnx_ir as ir

from lwqc.compile.encoding_task import encode_alone
from lwqc.compile.facts import Facts
from lwqc.compile.job import Job
from lwqc.compile.reference import Reference
from lwqc.compile.site_grams import SiteGrams
from lwqc.graph.sites import Site, SiteAnalysis, find_sites
from lwqc.model import io
from lwqc.model.data_files import model_files
from lwqc.passes.encoded_weights import EncodedWeights, Known
from lwqc.passes.to_encode import ToEncode
from lwqc.plans.plan import Floats
from lwqc.runtime.data import Dataset
from lwqc.runtime.parts import MAPPED_BYTES
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import Statistics, collect
from lwqc.runtime.stats.collect_in_parts import collect_in_parts
from lwqc.runtime.stats.collector import Collector


class KnownCodes(Known, Protocol):
    """Encoded weights that know the model whose sites they are of."""

    @property
    def names(self) -> Collection[str]:
        """Stored floats that stand for codes."""

    def on(self, model: ir.Model) -> Self:
        """The same for a changed model."""


@dataclass(frozen=True, eq=False)
class Version:
    """A model, the job it is compressed for, and what was found out about it.

    original: what results are compared with. start: the model that plans are for, where an earlier
    step made it out of the original, see `lwqc.decide.continued`; None where that is the original.
    earlier: recipes of those steps, the first one first.
    known: weights whose codes the model had already. floats: what the target computes in, once that
    is decided. token_weights: Gram matrices count tokens by how much attention reads them. raised:
    version of the default operator set that the model was converted to, None for its own.
    incomparable: outputs of the original that this version has not, or not as they were.
    """

    model: ir.Model
    job: Job
    original: Reference
    start: Reference | None = field(default=None, repr=False)
    earlier: tuple[str, ...] = ()
    known: KnownCodes | None = field(default=None, repr=False)
    floats: Floats | None = None
    token_weights: bool = False
    raised: int | None = None
    incomparable: frozenset[str] = frozenset()
    facts: Facts = field(default_factory=Facts, repr=False, compare=False)

    def derived(self, model: ir.Model, **changes: Any) -> Version:
        """The version that a change of the model makes; nothing is known of it yet."""
        if self.known is not None:
            changes = {"known": self.known.on(model), **changes}
        return replace(self, model=model, **{"floats": None, **changes}, facts=Facts())

    def once(self, step: str, entries: Hashable, change: Callable[[], ir.Model]) -> Version:
        """The version that a step of a plan makes of this one; made when it is first asked for."""
        return self.facts.get((step, entries), lambda: self.derived(change()))

    @property
    def begun(self) -> Reference:
        """The model that plans are for."""
        return self.start or self.original

    @property
    def name(self) -> str:
        """Name of the model that plans are for."""
        return self.begun.name

    @property
    def analysis(self) -> SiteAnalysis:
        """Sites of the model."""
        return self.facts.get("sites", lambda: find_sites(self.model))

    @property
    def sites(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.analysis.sites}

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.model.opset_imports.get("", 1))

    @property
    def is_large(self) -> bool:
        """Whether memory counts more than time."""
        return self.facts.get("large", lambda: io.weight_bytes(self.model) > MAPPED_BYTES)

    @property
    def weights(self) -> EncodedWeights:
        """Encoded weights, shared by all candidates."""
        return self.facts.get("weights", self._weights)

    def _weights(self) -> EncodedWeights:
        budget = (64 if self.is_large or self.job.room is not None else 512) << 20
        return EncodedWeights(
            self.model,
            io.read_array,
            budget,
            self.grams,
            self.known or {},
            progress=self.job.report("encoding"),
            make=encode_alone if self.job.cluster else ToEncode.encode,
        )

    @property
    def grams(self) -> SiteGrams:
        """Gram matrices of the sites' inputs."""
        return self.facts.get("grams", lambda: self.grams_of(self.model, self.analysis.sites))

    def grams_of(
        self, model: ir.Model, sites: Sequence[Site], data: Dataset | None = None
    ) -> SiteGrams:
        """Gram matrices of another model's sites, or on a part of the data."""
        fit = self.job.data.fit if data is None else data
        return SiteGrams(
            model, sites, fit, self.job.report("statistics"), self.token_weights, self.job.room
        )

    def collect(self, model: ir.Model, collectors: Iterable[Collector[Any]]) -> Statistics:
        """Statistics of a model on the data, see `lwqc.runtime.stats.collect`; in parts if asked.

        Raises InputError.
        """
        room, fit = self.job.room, self.job.data.fit
        if room is not None:
            return collect_in_parts(model, collectors, fit, room)
        return collect(model, collectors, fit, statistics_session)


def files_of(work: Version) -> list[Path]:
    """Every file that the models of this work still read from."""
    models = [work.original.model, work.begun.model, work.model]
    return list(dict.fromkeys(path for model in models for path in model_files(model)))
