"""The step that holds tables of embeddings as products of two factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.sites import Site, sites_by_name
from lwqc.graph.tables import Table, as_table
from lwqc.model import io
from lwqc.model.names import gather_names
from lwqc.passes.factor_table import factor_table
from lwqc.plans.plan import FactoredTable, Plan
from lwqc.plans.wording import amount_text, names_text
from lwqc.quant.low_rank import low_rank_rows
from lwqc.runtime.stats.id_counts import IdCounts

_UNSEEN = 0.1  # of all ids, for those that the data does not have
Float = NDArray[np.float64]


def table_of(version: Version, name: str) -> Table:
    """The table of that name. Raises InputError for what is none, with the reason."""
    return _table(version.sites, name)


def _table(sites: Mapping[str, Site], name: str) -> Table:
    site = sites.get(name)
    if site is None:
        raise InputError(f"the plan narrows {name}, which is no weight of the model")
    found = as_table(site)
    if not isinstance(found, Table):
        raise InputError(f"{name}: cannot be narrowed: {found or 'no rows of it are taken by ids'}")
    return found


def factors(version: Version, entry: FactoredTable) -> tuple[Float, Float]:
    """Rows [V, r] and directions [r, D] of a table; made once."""

    def make() -> tuple[Float, Float]:
        table = table_of(version, entry.table)
        data = entry.calibration == "data"
        weights = _row_weights(version, table) if data else np.ones(table.site.n)
        return low_rank_rows(table.site.matrix(io.read_array), entry.rank, weights)

    return version.facts.get(("factors", entry), make)


def _row_weights(version: Version, table: Table) -> Float:
    """How much each row counts, [V]: as often as the data takes it; its root where a head reads it.

    For a head reads all rows each time. A tenth of all that was taken is spread over all rows:
    texts to come have others.
    """
    size = table.site.n
    wanted = [IdCounts(name, size) for name in dict.fromkeys(table.ids)]
    found = version.collect(version.model, wanted)
    times = sum((found[one].times for one in wanted), np.zeros(size))
    shares: Float = (1 - _UNSEEN) * times / max(times.sum(), 1) + _UNSEEN / size
    return np.sqrt(shares) if table.heads else shares


def factored(version: Version, entries: Sequence[FactoredTable]) -> Version:
    """The version with tables as products; made once. Raises InputError."""
    chosen = tuple(entries)

    def changed() -> ir.Model:
        made = [factors(version, entry) for entry in chosen]
        copy = version.model.clone()
        gather_names(copy)
        sites = sites_by_name(copy)
        for entry, (rows, directions) in zip(chosen, made, strict=True):
            factor_table(copy.graph, _table(sites, entry.table), rows, directions)
        return copy

    return version.once("factor", chosen, changed)


def _run(made: Made) -> Made:
    return made.on(factored(made.version, made.plan.factor))


def _text(plan: Plan) -> Iterator[str]:
    tables = (f"{entry.table} to rank {entry.rank}" for entry in plan.factor)
    yield f"tables as products of two factors: {names_text(tables)}"


STEP = Step(
    "factor",
    _run,
    _text,
    short=lambda plan: amount_text(len(plan.factor), "tables as two factors"),
    looks=lambda plan: ("data" for entry in plan.factor if entry.calibration == "data"),
)
