"""The command that runs a whole build from a file."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from lwqc.cli.options import Building
from lwqc.cli.progress import progress_bars
from lwqc.cli.running import app
from lwqc.cli.sections import command
from lwqc.cli.shown import put, say
from lwqc.cli.telling import is_quiet

if TYPE_CHECKING:
    from lwqc.cli.pipeline.execution import StepResult
    from lwqc.cli.pipeline.steps import Build, Step


@command(Building, works=False)
def run(
    file: Annotated[Path, typer.Argument(help="TOML file that describes the build")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would run and why, and do nothing")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="run every step again")] = False,
    **options: Unpack[Building],
) -> None:
    """Run the steps of a build that are not up to date, and check its gates."""
    from lwqc.cli.pipeline.commands import commands
    from lwqc.cli.pipeline.document import read_document
    from lwqc.cli.pipeline.execution import check, paths_of, planned
    from lwqc.cli.pipeline.folders import locked, make_folder
    from lwqc.cli.pipeline.report import build_report, report_text
    from lwqc.cli.pipeline.steps import resolve
    from lwqc.model.outputs import check_outputs
    from lwqc.model.saving import write_text

    as_json = options["as_json"]
    build = resolve(file, read_document(file), commands(app))
    with contextlib.chdir(file.parent):
        with progress_bars():
            check(build)
        written = [path for step in build.steps for path in paths_of(step)]
        written += [Path(build.report)] if build.report else []
        check_outputs([], [file.name, *filter(None, [build.steps[0].original])], written)
        if dry_run:
            for line in _plan_lines(planned(build, force=force)):
                put(line)
            return
        with (
            locked(build.folder),
            contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(),
        ):
            results = _executed(build, file, force)
        report = report_text(build_report(build, results))
        if build.report:
            make_folder(Path(build.report).parent, str(file))
            write_text(build.report, report)
    if as_json:
        print(report, end="")
    elif not is_quiet():
        for line in _result_lines(results):
            put(line)
    missed = [f"{r.step.name}: {line}" for r in results for line in r.missed]
    if missed:
        say(f"{file}: not met: {'; '.join(missed)}")
        raise typer.Exit(3)


def _executed(build: Build, file: Path, force: bool) -> list[StepResult]:
    """All steps. Ctrl-C ends the run, and what was done is known to the next one."""
    from lwqc.cli.pipeline.execution import execute

    try:
        return execute(build, _told, force=force)
    except KeyboardInterrupt:
        _say(f"lwqc: {file}: interrupted; steps that were done are kept")
        raise typer.Exit(130) from None


def _told(line: str) -> None:
    """What happens to a step."""
    if not is_quiet():
        _say(line)


def _say(line: str) -> None:
    put(line, errors=True)


def _plan_lines(plan: Sequence[tuple[Step, Sequence[str]]]) -> Iterator[str]:
    """What would run and why, with the commands as a user could call them."""
    for step, why in plan:
        state = f"would run: {'; '.join(why)}" if why else "kept: nothing changed"
        yield f"{step.name}: {state}"
        if why:
            yield f"  {shlex.join(['lwqc', step.command.name, *step.arguments])}"


def _result_lines(results: Sequence[StepResult]) -> Iterator[str]:
    """Outputs with their gates."""
    for result in results:
        if result.step.is_output:
            yield f"{result.step.output}: {'written' if result.why else 'kept'}"
        for gate in result.gates:
            yield f"  {gate.text}: {'met' if gate.met else 'NOT MET'}"
