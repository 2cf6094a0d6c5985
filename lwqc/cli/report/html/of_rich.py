"""Tables of the terminal as tables of a page."""

from __future__ import annotations

from rich.table import Table as RichTable

from lwqc.cli.report.html.page import Table, table


def of_rich(shown: RichTable) -> Table | None:
    """The same cells; None without rows. Columns that the terminal sets right hold numbers."""
    rows = list(
        zip(*([str(cell) for cell in column.cells] for column in shown.columns), strict=True)
    )
    return table(
        [str(column.header) for column in shown.columns],
        rows,
        title=str(shown.title or ""),
        caption=str(shown.caption or ""),
        numeric=[i for i, column in enumerate(shown.columns) if column.justify == "right"],
    )
