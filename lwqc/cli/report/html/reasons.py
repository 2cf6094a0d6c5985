"""Everything that was refused, left as it is or undone, with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from lwqc.cli.report.html.page import Table, table
from lwqc.compile.result import Report

Left = tuple[str, str, str]  # kind of thing, name, reason


def reasons(report: Report) -> Table | None:
    """All of it as a table; None where nothing was left."""
    rows = list(dict.fromkeys(_all(report)))
    return table(["what", "name", "why"], rows, caption=f"{len(rows)} in all")


def _all(report: Report) -> Iterator[Left]:
    for site in report.sites:
        if site.reason:
            yield "weight", site.name, site.reason
    for tensor in report.skipped:
        yield "other tensor", tensor.name, tensor.reason
    for name, why in report.untransformed.items():
        yield "not transformed", name, why
    for name, why in report.kept_float32.items():
        yield "operator in float32", name, why
    yield from _of_pruning(report)
    yield from _of_branches(report)
    if report.search is not None:
        for name, why in report.search.left_out.items():
            yield "not searched", name, why
        for note in report.search.notes:
            yield "search", "", note
    for line in report.fallbacks:
        yield "runs elsewhere", "", line
    for line in report.notes:
        yield "note", "", line
    if report.unmeasured:
        yield "speed", "", f"not measured: {report.unmeasured}"


def _of_pruning(report: Report) -> Iterator[Left]:
    if (pruning := report.pruning) is None:
        return
    for group in pruning.groups:
        if group.reason:
            yield "group of channels", group.name, group.reason
    for tensor, axis, _, why in pruning.frozen:
        yield "weight axis", f"{tensor}:{axis}", why
    for name, why in pruning.barriers:
        yield "barrier to pruning", name, why
    for name, why in pruning.not_refitted:
        yield "not refitted", name, why
    for note in pruning.notes:
        yield "pruning", "", note


def _of_branches(report: Report) -> Iterator[Left]:
    if (removal := report.removal) is not None:
        for name, why in removal.refused:
            yield "residual addition", name, why
        for name, why in removal.still_computed.items():
            yield "still computed", name, why
        for name in removal.left:
            yield "layer of a removed branch", name, "stays, as others read it"
        for note in removal.notes:
            yield "removal", "", note
    if report.parallel is not None and report.parallel.note:
        yield "parallel branches", "", report.parallel.note
    if (slicing := report.slicing) is not None:
        for name, why in slicing.left.items():
            yield "residual stream", name, why
        if slicing.note:
            yield "residual streams", "", slicing.note
    for name, why in () if report.tokens is None else report.tokens.left.items():
        yield "tokens all stay", name, why
