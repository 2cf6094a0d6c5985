"""What commands do around their work: load, report progress, save, choose the exit code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from lwqc import io
from lwqc.compress import open_workspace
from lwqc.compressed import Compressed
from lwqc.errors import InputError
from lwqc.report.terminal import print_report, row_table
from lwqc.search_control import SearchControl
from lwqc.workspace import Workspace, data_files

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make any ONNX model smaller and faster on stock ONNX Runtime.",
)


def errors_console() -> Console:
    """A console on stderr."""
    return Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bars on stderr; nothing when it is not a terminal."""
    console = errors_console()
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


@contextmanager
def opened(
    model: Path,
    target: str,
    data: str | None,
    metric: str | None,
    shape: Sequence[str] | None,
    seed: int,
    output: Path | None,
    plan_out: Path | None = None,
    *,
    constant_inputs: bool = False,
) -> Iterator[Workspace]:
    """Load everything, refusing a bad output before any work is done."""
    loaded = io.load(model, constant_inputs=constant_inputs)
    read = [model, *data_files(loaded)]
    if output is not None:
        io.check_output(output, read)
    if plan_out is not None:
        io.check_output(plan_out, read)
        if output is not None and plan_out.resolve() == output.resolve():
            raise InputError(f"{plan_out}: is both the model and the plan; choose two names")
    with progress_bars() as report:
        yield open_workspace(
            loaded,
            name=model.name,
            target=target,
            data=data,
            metric=metric,
            shapes=parse_shapes(shape),
            seed=seed,
            progress=report,
        )


def parse_shapes(texts: Sequence[str] | None) -> list[dict[str, int]]:
    """Sizes of dynamic dimensions from `batch=8,seq=128`, one set for each text."""
    return [dims for text in texts or () if (dims := _parse_dims(text))]


def _parse_dims(text: str) -> dict[str, int]:
    dims: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if not size.isdigit():
            raise InputError(f"--shape {part!r}: expected name=size")
        dims[name.strip()] = int(size)
    return dims


def parse_control(
    output: Path,
    effort: str,
    time_limit: float | None,
    workers: int | None,
    cluster: str,
    resume: bool,
    seed: int,
) -> SearchControl:
    """How to search, from the options; the scores go to a file beside the output."""
    return SearchControl(
        effort=effort,  # type: ignore[arg-type]
        time_limit_s=math.inf if time_limit is None else time_limit,
        log=output.with_name(f"{output.name}.search"),
        resume=resume,
        processes=workers,
        cluster=cluster,
        seed=seed,
    )


def finish(
    done: Compressed,
    output: Path,
    plan_out: Path | None,
    external: bool | None,
    verify: bool,
    details: bool,
    as_json: bool,
) -> None:
    """Save, measure, print; exit code 3 when a constraint is not met."""
    if not verify and done.goals.max_drop is not None:
        raise InputError("--max-drop is measured on the saved file: drop --no-verify")
    if plan_out is not None:
        done.plan.save(plan_out)
    report = done.save(output, external_data=external, verify=verify)
    if as_json:
        print(report.to_json())
    else:
        print_report(report, Console(), details=details)
        if not verify:
            errors_console().print("not verified: the saved file was neither loaded nor measured")
    if not report.met:
        missed = "; ".join(
            f"{o.name}: asked {o.asked:.6g}, reached {o.reached:.6g} {o.unit}".rstrip()
            for o in report.outcomes
            if not o.met
        )
        print(f"lwqc: constraint not met, best model saved: {missed}", file=sys.stderr)
        raise typer.Exit(3)


def finish_row(models: Iterable[Compressed], output: Path, as_json: bool) -> None:
    """Save and measure models one by one, print a table; exit code 3 when one misses its budget."""
    reports = []
    for number, done in enumerate(models, 1):
        path = output.with_name(f"{output.stem}-{number}{output.suffix}")
        done.plan.save(path.with_suffix(".plan.json"))
        reports.append(done.save(path))
    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=1))
    else:
        Console().print(row_table(reports))
    missed = [report.output for report in reports if not report.met]
    if missed:
        print(f"lwqc: budgets not met by {', '.join(missed)}", file=sys.stderr)
        raise typer.Exit(3)
