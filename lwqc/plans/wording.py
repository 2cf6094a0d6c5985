"""How parts of a plan are worded for readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lwqc.plans.plan import Plan, SiteEntry
from lwqc.quant.methods import Method

_NAMED = 8  # names in a line; the others are counted
_MEASURES = {
    "js": "distance from what the original predicts (Jensen-Shannon divergence)",
    "kl": "distance from what the original predicts (KL divergence)",
    "angular": "angle to the outputs of the original, over pi",
    "norm": "squared error of the outputs, relative",
    "channels": "error of the outputs by channel, relative",
    "metric": "loss of the metric",
}
_ACTIVATIONS = {
    "dynamic": "activations of 8 bits with the range of each run",
    "static": "activations of 8 bits with ranges from the data",
}
_METHODS: Mapping[Method, str] = {
    "rtn": "each weight rounded by itself",
    "hqq": "codes for robust errors of the weights",
    "k-quant": "codes by least squares on the weights",
    "gptq": "later inputs take up the error of earlier ones",
    "gptq-order": "later inputs take up the error of earlier ones, the largest first",
    "gptq-refit": "later inputs take up the error of earlier ones, scales are fitted again",
    "gpfq": "each code chosen for the error made so far",
    "descent": "codes changed one by one while the error falls",
}


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


def measure_text(measure: str, metric: str = "") -> str:
    """What a divergence or a loss is, in words. metric: that is meant where it is by one."""
    if measure == "metric" and metric:
        return f"loss of {metric}"
    return _MEASURES.get(measure, measure)


def entry_words(entry: SiteEntry) -> str:
    """What happens to one site, in words with the names that options take in brackets."""
    named = entry.layout if entry.weight.kind != "fp16" else ""
    parts = [f"{entry.weight.words} ({named})" if named else entry.weight.words]
    if entry.activation != "none":
        parts.append(_ACTIVATIONS[entry.activation])
    if entry.method != "rtn":
        parts.append(f"{_METHODS[entry.method]} ({entry.method})")
    if not entry.search:
        parts.append("scales of the plain range")
    beside = ((f"of rank {entry.rank}", entry.rank), (f"for {entry.columns} inputs", entry.columns))
    parts += [f"beside it a float branch {what}" for what, n in beside if n]
    return ", ".join(parts)


def entry_text(entry: SiteEntry) -> str:
    """The same in the names that options take: `w4b32h, dynamic activations, gptq`."""
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
