"""Files side by side as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from lwqc.cli.report.console import Console
from lwqc.cli.report.terminal import latency_text
from lwqc.decide.explain.side_by_side import ComparedFile, SideBySide
from lwqc.model.numerals import size_text


def print_side_by_side(found: SideBySide, console: Console) -> None:
    """All tables, and the files that could not be compared."""
    for table in tables(found):
        console.print(table)
    for line in failures(found):
        console.print(line, style="yellow", highlight=False)


def tables(found: SideBySide) -> Iterator[Table]:
    """What files take, what they compute, what they store, and their operators."""
    yield _summary(found)
    for label in dict.fromkeys(label for file in found.files for label in file.latencies):
        yield _times(found, label)
    if any(file.divergence for file in found.files):
        yield _outputs(found)
    yield _stored(found)
    yield _operators(found)


def failures(found: SideBySide) -> list[str]:
    """Files that were not run or not compared, and why."""
    return [
        file.failed if file.name in file.failed else f"{file.name}: {file.failed}"
        for file in found.files
        if file.failed
    ]


def _summary(found: SideBySide) -> Table:
    table = Table(
        title=f"{len(found.files)} files", title_justify="left", caption=f"data: {found.data}"
    )
    table.add_column("file", overflow="fold")
    columns = ["size", "ratio", "nodes", "parameters", "opset", "drop"]
    for column in [*columns, *([found.metric] if found.metric else [])]:
        table.add_column(column, justify="right")
    first = found.files[0]
    for file in found.files:
        drop = "" if file.drop is None else f"{file.drop:.5f}"
        metric = "" if file.metric is None else f"{file.metric:.4f}"
        table.add_row(
            file.name,
            size_text(file.size_bytes),
            f"{file.size_bytes / max(first.size_bytes, 1):.3f}",
            str(file.nodes),
            f"{file.parameters:,}",
            str(file.opset),
            "reference" if file is first else drop,
            *([metric] if found.metric else []),
        )
    return table


def _times(found: SideBySide, label: str) -> Table:
    table = Table(title=f"Time of a run at {label}", title_justify="left")
    table.add_column("file", overflow="fold")
    for column in ("median", "faster"):
        table.add_column(column, justify="right")
    base = found.files[0].latencies[label]
    for file in found.files:
        if label in file.latencies:
            own = file.latencies[label]
            faster = f"{base.relative / own.relative:.2f}x"
            table.add_row(file.name, latency_text(own), faster)
    return table


def _outputs(found: SideBySide) -> Table:
    table = Table(title=f"Outputs against {found.files[0].name}", title_justify="left")
    for column in ("file", "output"):
        table.add_column(column, overflow="fold")
    for column in ("loss", "by channel", "cosine", "max abs"):
        table.add_column(column, justify="right")
    table.add_column("decisions kept")
    for file in found.files:
        for name, d in file.divergence.items():
            shares = (f"{what} {share:.2%}" for what, share in d.decisions.shares().items())
            cosine = "n/a" if d.cosine_mean is None else f"{d.cosine_mean:.5g}"
            table.add_row(
                file.name, name, f"{d.drop:.5f}", f"{d.error:.3g}", cosine, f"{d.max_abs:.4g}",
                ", ".join(shares),
            )  # fmt: skip
    return table


def _stored(found: SideBySide) -> Table:
    table = _by_file(found, "What is stored", "numbers")
    kinds = dict.fromkeys(kind for file in found.files for kind in file.stored)
    for kind in kinds:
        table.add_row(kind, *(_stored_text(file, kind) for file in found.files))
    return table


def _stored_text(file: ComparedFile, kind: str) -> str:
    if (own := file.stored.get(kind)) is None:
        return ""
    return f"{size_text(own.size_bytes)} in {own.tensors}"


def _operators(found: SideBySide) -> Table:
    table = _by_file(found, "Nodes by operator", "operator")
    for op in dict.fromkeys(op for file in found.files for op in file.operators):
        counts = (file.operators.get(op, 0) for file in found.files)
        table.add_row(op, *(str(count) if count else "" for count in counts))
    return table


def _by_file(found: SideBySide, title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for file in found.files:
        table.add_column(file.name, justify="right", overflow="fold")
    return table
