"""How parts of a plan are worded for readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lwqc.plans.plan import Plan, SiteEntry

_NAMED = 8  # names in a line; the others are counted


def names_text(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(known[:_NAMED]) + more


def counts_text(counts: Mapping[str, int]) -> str:
    """`linear 2, mean 1`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def amount_text(count: int, what: str) -> str:
    """`3 branches removed`, or nothing of nothing."""
    return f"{count} {what}" if count else ""


def entry_text(entry: SiteEntry) -> str:
    """What happens to one site: `w4b32h, dynamic activations, gptq`."""
    parts = [entry.layout]
    if entry.activation != "none":
        parts.append(f"{entry.activation} activations")
    if entry.method != "rtn":
        parts.append(entry.method)
    if not entry.search:
        parts.append("plain range")
    parts += [f"{what} {n}" for what, n in (("rank", entry.rank), ("columns", entry.columns)) if n]
    return ", ".join(parts)


def channels_by_group(plan: Plan) -> dict[str, list[int]]:
    """Channels that are removed, by group."""
    found: dict[str, list[int]] = {}
    for unit in plan.prune.units if plan.prune is not None else ():
        found.setdefault(unit.group, []).append(unit.index)
    return found
