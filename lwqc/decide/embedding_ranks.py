"""Decides to what rank tables of embeddings are brought."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lwqc.compile.steps.factored import factored, factors, table_of
from lwqc.compile.version import Version
from lwqc.decide.beforehand import Job, after_step
from lwqc.errors import InputError
from lwqc.graph.tables import as_table
from lwqc.model import io
from lwqc.plans.plan import FactoredTable
from lwqc.plans.recipe import EmbeddingRecipe

_LEAST = 0.01  # of the weights of a model, that a table is worth two operators for


def with_ranks(job: Job, options: EmbeddingRecipe) -> Job:
    """The job, after tables of embeddings became products of two factors.

    Raises InputError where there is none, with the reasons.
    """

    def choose(work: Version) -> tuple[Sequence[FactoredTable], Sequence[str]]:
        entries, left = choose_ranks(work, options)
        notes = [f"{name} keeps its width: {why}" for name, why in left.items()]
        if not work.job.data.fit.given:
            notes.append("no data was given: all rows of a table of embeddings count alike")
        return entries, [*notes, *(_told(work, entry) for entry in entries)]

    return after_step("factor", choose, factored, job)


def choose_ranks(
    work: Version, options: EmbeddingRecipe
) -> tuple[tuple[FactoredTable, ...], dict[str, str]]:
    """What is done to which table, and why others stay. Raises InputError where all do."""
    total = sum(site.size for site in work.analysis.sites)
    chosen, left = list[FactoredTable](), dict[str, str]()
    for site in work.analysis.sites:
        table = as_table(site)
        if table is None:
            continue
        width = site.k
        rank = int(options.rank) if options.rank >= 1 else max(1, round(options.rank * width))
        if isinstance(table, str):
            left[site.name] = table
        elif rank > min(site.n, width) or table.size(rank) >= site.size:
            left[site.name] = f"factors of rank {rank} are no smaller than {site.n} x {width}"
        elif site.size < _LEAST * total:
            left[site.name] = f"has {site.size / total:.1%} of the weights"
        else:
            seen = work.job.data.fit.given
            entry = FactoredTable(
                table=site.name, rank=rank, calibration="data" if seen else "none"
            )
            chosen.append(entry)
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise InputError(
            f"{work.name}: no table of embeddings gets narrower: {why or 'it has none'}"
        )
    return tuple(chosen), left


def _told(work: Version, entry: FactoredTable) -> str:
    """What of a table is lost, all rows alike."""
    table = table_of(work, entry.table)
    rows, directions = factors(work, entry)
    full = table.site.matrix(io.read_array)
    lost = np.square(full - rows @ directions).sum() / max(float(np.square(full).sum()), 1e-30)
    n, k = full.shape
    product = f"{n} x {entry.rank} times {entry.rank} x {k}"
    return f"{entry.table}: {n} x {k} became {product}; {lost:.1%} of its squares are lost"
