"""The result of `lwqc verify --blame`: what is measured for it, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from rich.table import Table

from lwqc.cli.report.console import Console
from lwqc.cli.report.terminal import print_reasons
from lwqc.compile.blame import Blame, Comparison
from lwqc.compile.losses import full_drop
from lwqc.compile.version import Version
from lwqc.runtime.session import Session, statistics_session

_ROWS = 20


@dataclass(frozen=True)
class Blamed:
    """A ranking, and the drop without a suspect by tensor. drop: of the whole compressed model."""

    blame: Blame
    drop: float
    checks: dict[str, float]


def blame_models(
    work: Version, compressed: ir.Model, label: str, drop: float, checks: int
) -> Blamed:
    """Rank the suspects of a compressed model, and measure the drop without the first ones.

    Raises InputError when the two models cannot be compared tensor by tensor.
    """
    comparison = Comparison(work.model, compressed, work.job.data.fit, statistics_session)
    found = comparison.blame(progress=work.job.report("blame"))
    suspects = [s for s in found.suspects if s.separable and s.share > 0][:checks]
    report = work.job.report("checking suspects")
    without = {}
    for done, suspect in enumerate(suspects):
        report(done, len(suspects))
        repaired = Session(comparison.repaired(suspect.tensor), label=f"repaired {label}")
        without[suspect.tensor] = full_drop(work, repaired)
    return Blamed(found, drop, without)


def blame_dict(blamed: Blamed) -> dict[str, Any]:
    """For JSON."""
    found = blamed.blame
    return {
        "passes": found.passes,
        "relative_error": dict(found.outputs),
        "only_rounding": found.is_exact,
        "suspects": [
            vars(s) | {"drop_without": blamed.checks.get(s.tensor)} for s in found.suspects
        ],
        "not_comparable": [{"tensor": n, "reason": why} for n, why in found.excluded],
    }


def print_blame(blamed: Blamed, console: Console, *, random: bool) -> None:
    """The suspects, and what could not be compared."""
    found = blamed.blame
    if not found.suspects or not any(found.outputs.values()):
        console.print("no error: the outputs are the same")
    elif found.is_exact:
        console.print("no error beyond rounding: there is nothing to blame")
    else:
        console.print(_table(blamed))
        if not all(s.separable for s in found.suspects):
            console.print("* around If, Loop or Scan, introduced and inherited error are one")
        if random:
            console.print(
                "ranked on random data: give real data with --data for a ranking that means "
                "something",
                style="yellow",
            )
    print_reasons(
        f"{len(found.excluded)} tensors have no counterpart of the same meaning:",
        [(_kind(why), name) for name, why in found.excluded],
        console,
    )


def _kind(reason: str) -> str:
    """Shapes differ from tensor to tensor; the list is grouped without them."""
    return "its shape differs" if reason.startswith("its shape") else reason


def _table(blamed: Blamed) -> Table:
    suspects = blamed.blame.suspects
    table = Table(title="Blame for the output error", title_justify="left")
    for column in ("tensor", "operator", "weights"):
        table.add_column(column, overflow="fold")
    for column in ("error", "introduced", "blame"):
        table.add_column(column, justify="right")
    if blamed.checks:
        table.add_column("drop without", justify="right")
    for suspect in suspects[:_ROWS]:
        row = [
            suspect.tensor,
            suspect.operator,
            _weights(suspect.weights),
            f"{suspect.relative_error:.2%}",
            f"{suspect.introduced:.2%}" + ("" if suspect.separable else "*"),
            f"{suspect.share:.1%}",
        ]
        if blamed.checks:
            without = blamed.checks.get(suspect.tensor)
            row.append("" if without is None else f"{without:.3g} ({_change(without, blamed)})")
        table.add_row(*row)
    if rest := suspects[_ROWS:]:
        share = sum(s.share for s in rest)
        table.caption = f"{len(rest)} more tensors with {share:.1%} together"
    return table


def _weights(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def _change(without: float, blamed: Blamed) -> str:
    return f"{(without - blamed.drop) / blamed.drop:+.0%}" if blamed.drop else "+0%"
