"""What a quantized site takes in a file beside its codes and scales, measured by lowering."""

from __future__ import annotations

from lwqc.compile.candidates import with_formats
from lwqc.decide.search.joint_plan import planned
from lwqc.decide.search.search_model import SearchModel
from lwqc.decide.search.space import SIZE, Stored, zero_points
from lwqc.model import io
from lwqc.plans.plan import SiteEntry


def measure_overhead(found: SearchModel) -> None:
    """Set the overhead of the space: nodes and constants per site, and what a zero point adds.

    Each operator and format is lowered once, on all sites that may take it. Symmetric formats tell
    what a site adds; what asymmetric ones add to that is spread over their zero points.
    """
    space = found.space
    levels: dict[tuple[str, str], list[tuple[Stored, int]]] = {}
    kinds: dict[tuple[str, str], SiteEntry] = {}
    for stored in space.stored:
        for level, entry in enumerate(stored.entries):
            if entry is not None:
                key = (stored.op, entry.layout)
                kinds[key] = entry
                levels.setdefault(key, []).append((stored, level))
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    per_site: dict[tuple[str, bool], float] = {}
    for key in sorted(levels, key=lambda k: (not kinds[k].weight.symmetric, k)):
        sites, form = levels[key], (key[0], kinds[key].unpacked)
        missing = _missing_bytes(found, sites)
        zeros = sum(_zeros(stored, level) for stored, level in sites)
        if not zeros:
            site = max(missing / len(sites), 0.0)
            per_site[form] = max(per_site.get(form, 0.0), site)
            measured[key] = (site, 0.0)
        else:
            site = min(per_site.get(form, 0.0), max(missing / len(sites), 0.0))
            measured[key] = (site, max(missing - site * len(sites), 0.0) / zeros)
    space.overhead = measured
    space.forget()


def _missing_bytes(found: SearchModel, sites: list[tuple[Stored, int]]) -> float:
    """What the cost so far misses with these sites at those levels."""
    space = found.space
    candidate = list(space.top)
    for stored, level in sites:
        assert stored.item is not None
        candidate[stored.item] = level
    lowered = with_formats(found.work, planned(found, tuple(candidate), ""))
    return io.serialized_bytes(lowered.model) - space.cost(tuple(candidate))[SIZE]


def _zeros(stored: Stored, level: int) -> int:
    entry = stored.entries[level]
    rows = stored.shape[1] if stored.flipped else stored.shape[0]
    size = 1
    for axis in stored.shape:
        size *= axis
    return 0 if entry is None else zero_points(entry, rows, size // max(rows, 1))
