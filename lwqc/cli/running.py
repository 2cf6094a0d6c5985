"""What commands do around their work: load, report progress, save, choose the exit code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lwqc.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from lwqc.compile.compressed import Compressed
    from lwqc.compile.workspace import Workspace
    from lwqc.decide.search.control import SearchControl

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make any ONNX model smaller and faster on stock ONNX Runtime.",
)


def errors_console() -> Console:
    """A console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bars on stderr; nothing when it is not a terminal."""
    console = errors_console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import Progress

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
    from lwqc.compile.workspace import data_files
    from lwqc.decide.compress import open_workspace
    from lwqc.model import io

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
    output: Path | None,
    effort: str,
    time_limit: float | None,
    workers: int | None,
    cluster: str,
    resume: bool,
    seed: int,
) -> SearchControl:
    """How to search, from the options; the scores go to a file beside the output."""
    from lwqc.decide.search.control import SearchControl

    return SearchControl(
        effort=effort,  # type: ignore[arg-type]
        time_limit_s=math.inf if time_limit is None else time_limit,
        log=None if output is None else output.with_name(f"{output.name}.search"),
        resume=resume,
        processes=workers,
        cluster=cluster,
        seed=seed,
    )


def check_bound(max_drop: float | None, verify: bool) -> None:
    """Refuse, before any work, a bound that could not be checked."""
    if not verify and max_drop is not None:
        raise InputError("--max-drop is measured on the saved file: drop --no-verify")


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
    from rich.console import Console

    from lwqc.cli.report.terminal import print_report

    report = done.save(output, external_data=external, verify=verify, plan=plan_out)
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


def finish_row(models: Generator[Compressed, None, None], output: Path, as_json: bool) -> None:
    """Save models together, print a table; exit code 3 when one misses its budget."""
    from rich.console import Console

    from lwqc.cli.report.terminal import row_table

    with closing(models), ExitStack() as drafts:
        row = []
        for number, done in enumerate(models, 1):
            path = output.with_name(f"{output.stem}-{number}{output.suffix}")
            plan = path.with_suffix(".plan.json")
            row.append(drafts.enter_context(done.drafted(path, plan=plan)))
        for draft in row:
            draft.files.publish()
    reports = [draft.report for draft in row]
    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=1))
    else:
        Console().print(row_table(reports))
    missed = [report.output for report in reports if not report.met]
    if missed:
        print(f"lwqc: budgets not met by {', '.join(missed)}", file=sys.stderr)
        raise typer.Exit(3)
