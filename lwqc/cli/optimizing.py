"""Commands that run passes by name, and tell of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from lwqc.cli.completion import VALUES
from lwqc.cli.options import Model, Opened, Optimizing, Showing, as_real, as_whole
from lwqc.cli.progress import at, end_progress
from lwqc.cli.running import errors_console, opened
from lwqc.cli.sections import command
from lwqc.cli.shown import put
from lwqc.cli.telling import is_quiet, is_verbose
from lwqc.errors import InputError, UnsoundResult
from lwqc.model.user_code import loaded_files
from lwqc.plans.spelled_out import part

if TYPE_CHECKING:
    import onnx_ir as ir

    from lwqc.passes.context import Context
    from lwqc.passes.instruments import Outputs, Trace
    from lwqc.passes.pipeline import Instrument, Pipeline

_FEEDS = 2  # that outputs are compared on


@command(Optimizing)
def opt(
    model: Model,
    text: Annotated[
        str,
        typer.Option(
            "-p",
            "--passes",
            help="fold-constants,join-equal; see `lwqc passes`",
            autocompletion=VALUES["passes"],
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="where to write the result")
    ] = None,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="after each pass: valid, and the same outputs")
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="only find the first pass that moves the outputs")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(parser=as_real, help="of an output's largest number, with either of these"),
    ] = 1e-4,
    time_passes: Annotated[
        bool, typer.Option("--time-passes", help="print what each pass took and changed")
    ] = False,
    print_after: Annotated[
        str | None,
        typer.Option(
            "--print-after",
            help="print the model as text after this pass",
            autocompletion=VALUES["pass"],
        ),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", help="folder for the whole model, weights too, after each change"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(parser=as_whole, help="run only the first N passes")
    ] = None,
    **options: Unpack[Optimizing],
) -> None:
    """Run passes on a model, in the order of a text."""
    from lwqc.model import io
    from lwqc.model.data_files import data_files
    from lwqc.model.metadata import bare
    from lwqc.passes.context import Context
    from lwqc.passes.instruments import Trace
    from lwqc.passes.instruments import Verify as VerifyEach
    from lwqc.passes.pipeline import Pipeline
    from lwqc.runtime.data import data_sources

    at("opening")
    pipeline = Pipeline.parse(text)
    _check_numbers(limit, tolerance)
    if output is None and not bisect:
        raise InputError("give -o for the result, or --bisect to find the pass that moves outputs")
    trace = Trace()
    instruments = _instruments(pipeline, limit, print_after, dump)
    loaded = io.load(model, constant_inputs=options["constant_inputs"])
    _check_output(
        output,
        [model, *data_files(loaded), *data_sources(options.get("data"), options.get("preprocess"))],
    )
    run = _runner(model, part(Opened, options)) if bisect or verify_each else None
    _check_output(output, loaded_files())
    if bisect and run is not None:
        _bisect(pipeline, loaded, run, tolerance, options["as_json"])
        return
    if verify_each:
        instruments.append(VerifyEach(run, tolerance))
    loaded = loaded if options["keep_metadata"] else bare(loaded)
    ctx = Context(loaded)
    with _failures_told():
        pipeline.run(loaded, ctx, [_progress(len(pipeline.steps)), *instruments, trace])
    at("checking")
    saved = {} if output is None else _saved(loaded, output, verify_each, options)
    notes = loaded.meta.get("lwqc_notes", ())
    end_progress()
    _report(ctx, trace, saved, notes, time_passes, options["as_json"])


def _check_numbers(limit: int | None, tolerance: float) -> None:
    """Raises InputError."""
    if limit is not None and limit < 0:
        raise InputError(f"--limit {limit}: must not be negative")
    if not tolerance >= 0:
        raise InputError(f"--tolerance {tolerance:g}: must not be negative")


def _check_output(output: Path | None, read: Iterable[Path | str]) -> None:
    """Raises InputError for a result that would take the place of a file that is read."""
    from lwqc.model.outputs import check_output

    if output is not None:
        check_output(output, read)


def _saved(model: ir.Model, output: Path, verify_each: bool, options: Optimizing) -> dict[str, Any]:
    """Write the result; what was written, as `--json` has it."""
    from lwqc.compile.saved_check import save

    verify = options["verify"]
    written = save(model, output, external_data=options.get("external"), verify=verify)
    return {
        "output": str(output),
        "output_bytes": written.size_bytes,
        "verified": verify,
        "verified_each": verify_each,
    }


@contextmanager
def _failures_told() -> Iterator[None]:
    """Raises UnsoundResult, a line, for what a pass says of its own failure."""
    from onnx_ir.passes import PassError

    try:
        yield
    except PassError as error:
        raise UnsoundResult(str(error)) from error


def _instruments(
    pipeline: Pipeline, limit: int | None, print_after: str | None, dump: Path | None
) -> list[Instrument]:
    from lwqc.passes.base import name_of
    from lwqc.passes.instruments import Dump, Limit, PrintAfter
    from lwqc.passes.registry import unknown

    found: list[Instrument] = []
    if limit is not None:
        found.append(Limit(limit))
    if print_after is not None:
        held = list(dict.fromkeys(map(name_of, pipeline.steps)))
        if print_after not in held:
            raise unknown("pass of this pipeline", print_after, held)
        found.append(PrintAfter(print_after, put))
    if dump is not None:
        found.append(Dump(dump))
    return found


def _runner(model: Path, options: Opened) -> Callable[[ir.Model], Outputs]:
    """What gives the outputs of a model on a few feeds, without graph optimisation."""
    from lwqc.runtime.session import Session, SessionSettings

    with opened(model, None, options) as work:
        feeds = work.job.data.judge[:_FEEDS]

    def run(now: ir.Model) -> Outputs:
        session = Session(now, SessionSettings(optimize=False), label=model.name)
        rows = [session(one) for one in feeds]
        return {
            name if len(rows) == 1 else f"{name} (feed {i})": value
            for i, row in enumerate(rows)
            for name, value in row.items()
        }

    return run


def _bisect(
    pipeline: Pipeline,
    model: ir.Model,
    run: Callable[[ir.Model], Outputs],
    tolerance: float,
    as_json: bool,
) -> None:
    """Print what was found; exit code 3 where outputs move."""
    from dataclasses import asdict

    from lwqc.passes.bisect import first_moved

    at("running passes")
    with _failures_told():
        found = first_moved(pipeline, model, run, tolerance)
    end_progress()
    if as_json:
        print(json.dumps(asdict(found) if found is not None else None, indent=1))
    elif found is None:
        put("no pass moves the outputs")
    else:
        put(f"pass {found.number} of {len(pipeline.steps)}, {found.step}: {found.why}")
    if found is not None:
        raise typer.Exit(3)


def _report(
    ctx: Context,
    trace: Trace,
    saved: Mapping[str, Any],
    notes: Sequence[str],
    time_passes: bool,
    as_json: bool,
) -> None:
    """Changes by pass, what passes say they left alone, notes, and what was saved."""
    if as_json:
        refused = [
            {"what": r.name, "step": r.step, "reason": r.reason} for r in ctx.refused.values()
        ]
        told = {"passes": trace.rows, "relaxed": ctx.relaxed, "refused": refused}
        result = {**told, "notes": list(notes), **saved}
        print(json.dumps(result, indent=1))
        return
    if is_quiet():
        return
    console = errors_console()
    for row in trace.rows:
        operators = ", ".join(f"{op} {n:+}" for op, n in row["operators"].items())
        took = f"{row['ms']:8.1f} ms  " if time_passes else ""
        what = f"{row['changes']} changes" if row["changes"] else "nothing"
        line = f"{took}{row['pass']}: {what}{f' ({operators})' if operators else ''}"
        if time_passes or is_verbose() or row["changes"]:
            console.print(line, highlight=False, soft_wrap=True)
    for refusal in ctx.refused.values():
        line = f"{refusal.step} left {refusal.name}: {refusal.reason}"
        console.print(line, highlight=False, soft_wrap=True)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    if saved:
        put(_summary(saved, trace))


def _summary(saved: Mapping[str, Any], trace: Trace) -> str:
    """What was saved, in a line: changes by pass, and what was verified."""
    by_pass: dict[str, int] = {}
    for row in trace.rows:
        if row["changes"]:
            by_pass[row["pass"]] = by_pass.get(row["pass"], 0) + row["changes"]
    changes = ", ".join(f"{name} {count}" for name, count in by_pass.items())
    looked = "verified after each pass" if saved["verified_each"] else "passes not verified"
    loads = "the file loads" if saved["verified"] else "the file was not loaded"
    return (
        f"saved {saved['output']} ({saved['output_bytes']} bytes): "
        f"{f'changes: {changes}' if changes else 'no changes'}; {looked}, {loads}"
    )


def _progress(passes: int) -> Instrument:
    """Says how many of them are done."""
    from lwqc.passes.instruments import Counting

    return Counting(lambda done: at("running passes", done, passes))


@command(Showing, works=False)
def passes(
    name: Annotated[
        str | None, typer.Argument(help="show this one in full", autocompletion=VALUES["pass"])
    ] = None,
    **options: Unpack[Showing],
) -> None:
    """List the passes and pipelines that `lwqc opt` runs, or describe one."""
    from lwqc.passes.catalogue import catalogue, described

    as_json = options["as_json"]
    if name is not None:
        found = described(name)
        print(json.dumps(vars(found), indent=1) if as_json else found.text())
        return
    entries = catalogue()
    if is_quiet() and not as_json:
        put("\n".join(entry.name for entry in entries))
        return
    if as_json:
        print(json.dumps([vars(entry) for entry in entries], indent=1))
        return
    for kind in dict.fromkeys(entry.kind for entry in entries):
        put(f"{kind}:")
        for entry in entries:
            if entry.kind == kind:
                put(f"  {entry.name}: {entry.summary}")
                if is_verbose():
                    put(textwrap.indent(described(entry.name).text(), "    "))
