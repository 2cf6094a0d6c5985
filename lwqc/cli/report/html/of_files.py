"""The page on files of any tool, side by side."""

from __future__ import annotations

from lwqc.cli.report.html.of_rich import of_rich
from lwqc.cli.report.html.page import Lines, Page, Source, section
from lwqc.cli.report.side_by_side import failures, tables
from lwqc.decide.explain.side_by_side import SideBySide
from lwqc.runtime.session import VERSION


def files_page(found: SideBySide, command: str) -> Page:
    """The tables of the terminal, each a chapter. command: that makes it again."""
    failed = tuple(failures(found))
    random = found.data_kind == "random"
    advice = "Measured on random data: give real data with --data for numbers that mean something."
    return Page(
        title=" · ".join(file.name for file in found.files),
        facts=(
            *(
                f"{file.name}: written by {file.producer or 'no one it names'}"
                for file in found.files
            ),
            f"measured on {found.data} with onnxruntime {VERSION}",
        ),
        sections=(
            section("Not compared", Lines(failed, tone="note") if failed else None),
            section("Side by side", *map(of_rich, tables(found))),
            section("Data", Lines((advice,), tone="note") if random else None),
            section("Again", Source(command, title="The command")),
        ),
    )
