"""The page on several models from little compressed to as much as was asked."""

from __future__ import annotations

from collections.abc import Sequence

from lwqc.cli.report.html.axes import front
from lwqc.cli.report.html.of_result import search_chart
from lwqc.cli.report.html.of_rich import of_rich
from lwqc.cli.report.html.page import Lines, Mark, Page, Scatter, Source, section
from lwqc.cli.report.html.reasons import reasons
from lwqc.cli.report.plan_text import plan_heading, plan_steps
from lwqc.cli.report.terminal import row_table
from lwqc.compile.compressed import Compressed
from lwqc.compile.result import Report
from lwqc.model.numerals import size_text


def row_page(row: Sequence[tuple[Compressed, Report]], command: str) -> Page:
    """The curve of the models, what was done to each, and what of the last one was left."""
    reports = [report for _, report in row]
    last, last_report = row[-1]
    return Page(
        title=f"{last_report.source}: {len(row)} models",
        facts=tuple(plan_heading(last.plan)),
        sections=(
            section("What they bring", of_rich(row_table(reports)), _curve(reports)),
            section(
                "What changed, and why",
                *(Lines(tuple(plan_steps(d.plan)), title=r.output) for d, r in row),
            ),
            section("The search", search_chart(last)),
            section("Left as it is in the last one", reasons(last_report)),
            section("Again", Source(command, title="The command")),
        ),
    )


def _curve(reports: Sequence[Report]) -> Scatter | None:
    """Size and loss, as measured on the files."""
    known = [(r.output_bytes, r.drop, r.output) for r in reports if r.drop is not None]
    if not known:
        return None
    best = front([(size, drop) for size, drop, _ in known])
    marks = [
        Mark(size, drop, f"{name}: {size_text(size)}, drop {drop:.5f}", "front" if b else "tried")
        for (size, drop, name), b in zip(known, best, strict=True)
    ]
    return Scatter("size of the file", "drop", tuple(marks), x_is_bytes=True)
