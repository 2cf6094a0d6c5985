"""What commands do around their work: load, report progress, save, choose the exit code."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwqc.cli.hosting import answer, command_line, work_begins
from lwqc.cli.options import Changing, Foretelling, Opened, Printing, Saved
from lwqc.cli.progress import at, progress_bars
from lwqc.cli.shown import say
from lwqc.cli.telling import is_quiet, is_verbose
from lwqc.errors import InputError
from lwqc.model.outputs import check_outputs
from lwqc.model.user_code import loaded_files
from lwqc.plans.options import Opening
from lwqc.plans.spelled_out import part
from lwqc.plans.version import VERSION

if TYPE_CHECKING:
    from lwqc.cli.report.console import Console
    from lwqc.compile.compressed import Compressed
    from lwqc.compile.forecast.forecast import Forecast
    from lwqc.compile.result import Report
    from lwqc.compile.version import Version

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make any ONNX model smaller and faster on stock ONNX Runtime.",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"lwqc {VERSION}")
        raise typer.Exit


@app.callback()
def everywhere(
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            help="what one model may take: inputs=4GB, data=40GB, traces=40GB, folding=8MB, "
            "memory=16GB, run=600s",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="print the version"),
    ] = False,
) -> None:
    """Make any ONNX model smaller and faster on stock ONNX Runtime."""
    if limit:
        from lwqc.model.limits import parse_limits, set_limits

        set_limits(parse_limits(limit))


def errors_console() -> Console:
    """A console on stderr."""
    from lwqc.cli.report.console import Console

    return Console(stderr=True)


@dataclass(frozen=True)
class Files:
    """What a command writes, and what it reads beside its model, data and user code.

    models: the results. written: what else is written; None where it is not asked for.
    logs: what a search may write. read: recipe and plan; text that names no file is none.
    """

    models: Sequence[Path]
    written: Sequence[Path | None] = ()
    logs: Sequence[Path | None] = ()
    read: Sequence[Path | str | None] = ()

    def check(self, inputs: Sequence[Path | str], options: Sequence[Path] = ()) -> None:
        """Refuse what cannot be written, or would overwrite an input. Raises InputError."""
        outputs = [*self.models, *(w for w in self.written if w is not None), *options]
        read = [*inputs, *(r for r in self.read if r)]
        check_outputs(outputs, read, [log for log in self.logs if log is not None])


@contextmanager
def opened(
    model: Path,
    files: Files | None,
    options: Opened,
    *,
    verify: bool = True,
    fallback: bool = False,
) -> Iterator[Version]:
    """Load everything, refusing a bad output before any work is done.

    The option `original` names what the model was made of by earlier steps, see
    `lwqc.decide.continued`. verify, fallback: see `skip_checks` and `allow_fallback` of
    `lwqc.compile.job.Job`.
    """
    from lwqc.model.extensions import TARGETS

    TARGETS.check(options.get("target") or "cpu")
    work_begins()
    constant, original = options.get("constant_inputs", False), options.get("original")
    with progress_bars() as report:
        from lwqc.backends.provider_options import options_path
        from lwqc.decide.compress import open_version
        from lwqc.decide.continued import continued
        from lwqc.model import io
        from lwqc.model.data_files import data_files
        from lwqc.model.metadata import bare
        from lwqc.runtime.data import data_sources

        at("opening")
        loaded = io.load(model, constant_inputs=constant)
        first = io.load(original, constant_inputs=constant) if original else loaded
        read = [model, *data_files(loaded), *([original] if original else []), *data_files(first)]
        if files is not None:
            files.check(
                [
                    options_path(model),
                    *read,
                    *data_sources(options.get("data"), options.get("preprocess")),
                ]
            )
        work = open_version(
            first,
            name=(original or model).name,
            **part(Opening, options),
            skip_checks=not verify,
            allow_fallback=fallback,
            cluster=options.get("cluster", ""),
            progress=report,
        )
        if files is not None:
            files.check(loaded_files())
            if work.job.target.profiles:
                files.check([], [options_path(output) for output in files.models])
        if original:
            loaded = loaded if options.get("keep_metadata") else bare(loaded)
            work = continued(work.original, loaded, model.name, earlier=[model.name])
        work.job.report("deciding")(0, 1)
        yield work


def check_dry_run(options: Foretelling, **written: Path | None) -> None:
    """Refuse, before any work, what cannot be foretold. written: other options that name files."""
    if options["dry_run"] and "memory" not in options:
        raise InputError("--dry-run foretells jobs within a bound on memory: give --memory")
    named = {"plan-out": options.get("plan_out"), "report": options.get("report"), **written}
    for flag, path in named.items():
        if options["dry_run"] and path is not None:
            raise InputError(f"--dry-run writes nothing: leave out --{flag}")


def print_foretold(found: Forecast, options: Printing) -> None:
    """What a job will take, as a table or as JSON."""
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.foretold import forecast_dict, forecast_table

    answer(forecast_dict(found))
    if options["as_json"]:
        print(json.dumps(forecast_dict(found), indent=1))
    else:
        Console().print(forecast_table(found))


def log_name(output: Path) -> Path:
    """Where the scores of a search are."""
    return output.with_name(f"{output.name}.search")


def check_bound(options: Changing) -> None:
    """Refuse, before any work, a bound that could not be checked."""
    given = [name for name in ("max_drop", "max_class_drop") if name in options]
    if given and not options["verify"]:
        flag = given[0].replace("_", "-")
        raise InputError(f"--{flag} is measured on the saved file: drop --no-verify")


def finish(
    done: Compressed,
    output: Path,
    options: Saved,
    *,
    verify: bool = True,
    engines: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Save, measure, print; exit code 3 when a constraint is not met.

    dry_run: only print what that would take.
    """
    from lwqc.cli.report.console import Console

    if dry_run:
        from lwqc.compile.forecast.forecast import of_result

        print_foretold(of_result(done, verify=verify), options)
        return
    from lwqc.cli.report.terminal import print_report

    external, plan = options.get("external"), options.get("plan_out")
    page = options.get("report")
    with done.drafted(
        output,
        external_data=external,
        verify=verify,
        plan=plan,
        engines=engines,
        weigh=page is not None,
    ) as draft:
        report = draft.report
        if page is not None:
            draft.files.add_text(page, _page(done, report))
        draft.files.publish()
    answer(report.to_dict())
    if options["as_json"]:
        print(report.to_json())
    elif not is_quiet():
        print_report(report, Console(), details=options.get("details", False) or is_verbose())
        if page is not None:
            Console().print(f"the whole report is {page}", highlight=False, soft_wrap=True)
        if not verify:
            errors_console().print("not verified: the saved file was neither loaded nor measured")
    if not report.met:
        missed = "; ".join(
            f"{o.name}: asked {o.asked:.6g}, reached {o.reached:.6g} {o.unit}".rstrip()
            + (f" ({o.why})" if o.why else "")
            for o in report.outcomes
            if not o.met
        )
        say(f"constraint not met, best model saved: {missed}")
        raise typer.Exit(3)


def _page(done: Compressed, report: Report) -> str:
    from lwqc.cli.report.html.of_result import result_page
    from lwqc.cli.report.html.render import render

    return render(result_page(done, report, command_line()))


def row_names(output: Path, number: int) -> tuple[Path, Path]:
    """Where a model of a row and its plan go."""
    path = output.with_name(f"{output.stem}-{number}{output.suffix}")
    return path, path.with_suffix(".plan.json")


def finish_row(
    models: Generator[Compressed, None, None], output: Path, as_json: bool, page: Path | None
) -> None:
    """Save models together, and a page; print a table; exit code 3 when one misses its budget."""
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.terminal import row_table
    from lwqc.model.saving import publish_together

    with closing(models), ExitStack() as drafts:
        row, made = [], []
        for number, done in enumerate(models, 1):
            path, plan = row_names(output, number)
            row.append(drafts.enter_context(done.drafted(path, plan=plan)))
            made.append(done)
        if page is not None:
            from lwqc.cli.report.html.of_row import row_page
            from lwqc.cli.report.html.render import render

            told = [(done, draft.report) for done, draft in zip(made, row, strict=True)]
            row[-1].files.add_text(page, render(row_page(told, command_line())))
        publish_together([draft.files for draft in row])
    reports = [draft.report for draft in row]
    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=1))
    elif not is_quiet():
        Console().print(row_table(reports))
    missed = [report.output for report in reports if not report.met]
    if missed:
        say(f"budgets not met by {', '.join(missed)}")
        raise typer.Exit(3)
