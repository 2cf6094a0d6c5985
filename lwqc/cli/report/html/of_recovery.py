"""The page on a model that was fitted to another one."""

from __future__ import annotations

import onnx_ir as ir

from lwqc.cli.report.html.outline import side_by_side
from lwqc.cli.report.html.page import Cell, Lines, Page, Source, section, table
from lwqc.compile.recovered import Recovered, RecoverReport
from lwqc.model.data_files import stored_bytes
from lwqc.model.numerals import size_text


def recovery_page(small: ir.Model, done: Recovered, report: RecoverReport, command: str) -> Page:
    """What the fit did. small: the model before it. command: that makes it again."""
    before = stored_bytes(small)
    rows = [
        ("size", _size(before), _size(report.output_bytes)),
        ("loss on what was held back", _number(report.loss_before), _number(report.loss_after)),
        (f"drop from {report.teacher}", _number(report.drop_before), _number(report.drop_after)),
    ]
    parts = f"{report.parts} parts were fitted one by one, and then " if report.parts else ""
    unchanged = f"The model is unchanged: {report.unchanged}."
    return Page(
        title=f"{report.source} → {report.output}",
        facts=(f"fitted to {report.teacher} on {report.data}", f"{report.seconds:.0f} s"),
        sections=(
            section("What it brought", table(["", "before", "after"], rows, numeric=[1, 2])),
            section(
                "What changed",
                Lines((unchanged,), tone="note") if report.unchanged else None,
                Lines(
                    (
                        f"{parts}{report.steps} steps were taken for the whole, on {report.fitted} "
                        f"sets of inputs; {report.held_back} were held back.",
                        f"{report.trained:,} numbers were trained.",
                    )
                ),
            ),
            section("Left as it is", table(["note"], [(note,) for note in report.notes])),
            section(
                "Before and after",
                side_by_side((report.source, small, ()), (report.output, done.model, ())),
            ),
            section("Again", Source(command, title="The command")),
        ),
    )


def _size(size_bytes: int) -> Cell:
    return Cell(size_text(size_bytes), size_bytes)


def _number(value: float) -> Cell:
    return Cell(f"{value:.4g}", value)
