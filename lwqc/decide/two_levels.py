"""Two formats for the sites of a model, by how much each of them matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lwqc.compile.candidates import tried
from lwqc.compile.version import Version
from lwqc.decide.mixed import legal_entries, plan_of, stored_bytes, with_method
from lwqc.graph.sites import MIN_WEIGHTS, Site
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.methods import Method


@dataclass(frozen=True)
class Levels:
    """The formats of sites that matter less, and of those that matter more."""

    low: WeightFormat
    high: WeightFormat

    def of(self, work: Version, site: Site) -> tuple[SiteEntry | None, SiteEntry | None]:
        """The legal entries of a site that are nearest to both, of the same kind and bits.

        None: there is no such entry, and the site stays float. Where only the low one is missing
        the site keeps the high one.
        """
        tiny = min(self.low.bits, self.high.bits) == 2
        legal = legal_entries(work, site, tiny=tiny)

        def nearest(wanted: WeightFormat) -> SiteEntry | None:
            kind = (wanted.kind, wanted.bits)
            return min(
                (e for e in legal if (e.weight.kind, e.weight.bits) == kind),
                key=lambda e: (
                    abs((e.weight.block or 1 << 20) - (wanted.block or 1 << 20)),
                    e.weight.symmetric != wanted.symmetric,
                ),
                default=None,
            )

        return nearest(self.low) or nearest(self.high), nearest(self.high)


def ranked(
    work: Version,
    importance: Mapping[str, float],
    budget: float | None,
    levels: Levels,
    recipe: str,
) -> Plan:
    """Two formats by rank (Layer-Wise Quantization): the least important sites get the low one.

    importance: site name -> importance; sites without one count as most important.
    budget: bytes of all sites; as many sites as possible keep the high format. None: those of
    importance above 0 do.
    """
    sites = [s for s in work.analysis.sites if s.size >= MIN_WEIGHTS]
    entries = {s.name: levels.of(work, s) for s in sites}
    total = sum(stored_bytes(work, s, entries[s.name][1]) for s in sites)
    order = sorted(sites, key=lambda s: importance.get(s.name, float("inf")))
    picked = {s.name: entries[s.name][1] for s in sites}
    for site in order:
        enough = importance.get(site.name, 1.0) > 0 if budget is None else total <= budget
        if enough:
            break
        low, high = entries[site.name]
        total += stored_bytes(work, site, low) - stored_bytes(work, site, high)
        picked[site.name] = low
    return plan_of(work, picked, recipe).noted(*_notes(work, order, importance, levels, entries))


def _notes(
    work: Version,
    order: list[Site],
    importance: Mapping[str, float],
    levels: Levels,
    entries: Mapping[str, tuple[SiteEntry | None, SiteEntry | None]],
) -> list[str]:
    """What the order or the levels could not do."""
    found = []
    unranked = [s.name for s in order if s.name not in importance]
    if unranked:
        more = f" and {len(unranked) - 1} more" if unranked[1:] else ""
        found.append(
            f"{unranked[0]}{more}: outside any residual block, the last to get {levels.low}"
        )
    for place, wanted in enumerate((levels.low, levels.high)):
        chosen = [(s.name, entries[s.name][place]) for s in order]
        other = [n for n, e in chosen if e is not None and e.weight.bits != wanted.bits]
        if other:
            more = f" and {len(other) - 1} more" if other[1:] else ""
            found.append(f"{other[0]}{more}: {work.job.target.name} has no {wanted} for it")
    return found


def bisected(
    work: Version,
    importance: Mapping[str, float],
    limit: float,
    levels: Levels,
    method: Method,
    recipe: str,
) -> Plan:
    """As many sites as possible in the high format, then of those in the low one, within a drop.

    The least important sites go first; each count is found by bisection. Source: 2306.04879.
    """
    sites = [s for s in work.analysis.sites if s.size >= MIN_WEIGHTS]
    order = sorted(sites, key=lambda s: importance.get(s.name, float("inf")))
    entries = {
        s.name: [e and with_method(work, s, [e], method)[1] for e in levels.of(work, s)]
        for s in sites
    }
    picked: dict[str, SiteEntry | None] = dict.fromkeys(entries)
    for level in (1, 0):
        fits, fails = 0, len(order) + 1
        while fits + 1 < fails:
            middle = (fits + fails) // 2
            changed = {s.name: entries[s.name][level] for s in order[:middle]}
            plan = plan_of(work, {**picked, **changed}, recipe)
            if tried(work, plan).drop <= limit:
                fits = middle
            else:
                fails = middle
        picked |= {s.name: entries[s.name][level] for s in order[:fits]}
        order = order[:fits]
    return plan_of(work, picked, recipe)
