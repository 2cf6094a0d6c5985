"""What a job will take, as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from lwqc.compile.forecast.forecast import Forecast
from lwqc.model.numerals import size_text


def forecast_table(found: Forecast) -> Table:
    """A row for each stage, and one for all."""
    table = Table(
        title="What the job will take on this machine",
        title_justify="left",
        caption=f"memory with mapped pages, of {size_text(found.room.memory)} allowed"
        + (f"; {size_text(found.sent)} to workers and back, not timed" if found.sent else "")
        + (f"; without {found.unknown} nodes of unknown work" if found.unknown else ""),
        caption_justify="left",
    )
    table.add_column("stage")
    for column in ("time", "processor", "memory", "read", "written"):
        table.add_column(column, justify="right")
    for stage in found.stages:
        table.add_row(
            stage.name,
            *map(_time, stage.seconds),
            size_text(found.own + stage.memory),
            size_text(stage.read),
            size_text(stage.written),
        )
    table.add_section()
    table.add_row(
        "all",
        _time(found.seconds),
        _time(found.processor_seconds),
        size_text(found.memory),
        size_text(found.read),
        size_text(found.written),
    )
    return table


def forecast_dict(found: Forecast) -> dict[str, Any]:
    """The same as plain data: seconds and bytes."""
    stages = [
        {
            "stage": stage.name,
            "seconds": float(stage.seconds[0]),
            "processor_seconds": float(stage.seconds[1]),
            "memory_bytes": found.own + stage.memory,
            "read_bytes": stage.read,
            "written_bytes": stage.written,
            "network_bytes": stage.sent,
        }
        for stage in found.stages
    ]
    return {
        "stages": stages,
        "seconds": found.seconds,
        "processor_seconds": found.processor_seconds,
        "memory_bytes": found.memory,
        "memory_bound_bytes": found.room.memory,
        "output_bytes": found.output_bytes,
        "unknown_nodes": found.unknown,
    }


def _time(seconds: float) -> str:
    for unit, factor in (("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} s"
