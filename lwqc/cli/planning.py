"""Commands that make, show, compare and execute plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from lwqc.cli.compressing import only_clean
from lwqc.cli.hosting import answer
from lwqc.cli.options import (
    Applying,
    Model,
    Opened,
    Output,
    Planning,
    Quantize,
    RecipeName,
    Resume,
    Saved,
)
from lwqc.cli.progress import end_progress
from lwqc.cli.running import Files, check_dry_run, errors_console, finish, log_name, opened
from lwqc.cli.sections import command
from lwqc.cli.telling import is_quiet
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.options import Budgets
from lwqc.plans.spelled_out import part


@command(Planning)
def plan(
    model: Annotated[
        Path | None,
        typer.Argument(help="ONNX model, or with --text a plan", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="where to write the plan")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="print the plan, made now or read, for a reader")
    ] = False,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", metavar="PLAN PLAN", help="print how two plans differ"),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of plans")
    ] = False,
    recipe: RecipeName = "auto",
    quantize: Quantize = True,
    resume: Resume = False,
    **options: Unpack[Planning],
) -> None:
    """Decide as `compress` does, and write only the plan; or show plans."""
    from lwqc.cli.plans import print_diff, print_plan, print_schema, read_plan
    from lwqc.cli.report.plan_text import plan_line
    from lwqc.decide.compress import make_plan
    from lwqc.decide.search.control import search_control
    from lwqc.plans.recipe import as_asked, find

    if schema or diff is not None:
        end_progress()
    if schema:
        print_schema("plan")
    elif diff is not None:
        print_diff(*diff)
    elif model is None:
        raise InputError("give a model to plan for, a plan with --text, or two plans with --diff")
    elif text and (read := read_plan(model)) is not None:
        end_progress()
        print_plan(read)
    elif output is None and not text:
        raise InputError("-o says where the plan goes; --text prints it")
    elif output is None and resume:
        raise InputError("--resume goes on from OUTPUT.search: give -o")
    else:
        budgets = part(Budgets, options)
        if not quantize:
            recipe = only_clean(recipe, budgets)
        log = None if output is None else log_name(output)
        control = search_control(options, options["seed"], log, resume)
        chosen = as_asked(find(recipe), options)
        goals = Goals(**budgets)
        files = Files([] if output is None else [output], [], [control.log], [recipe])
        with opened(model, files, part(Opened, options)) as work:
            made = make_plan(work, goals, chosen, control)
            if output is not None:
                made.save(output)
                line = plan_line(made, len(work.sites))
                answer({"output": str(output), "planned": line})
                if not is_quiet():
                    errors_console().print(f"{output}: {line}")
            if text:
                print_plan(made)


@command(Applying, name="apply")
def apply_command(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan written by `lwqc plan`")],
    output: Output,
    allow_drift: Annotated[
        bool,
        typer.Option("--allow-drift", help="also with another model, other data or other versions"),
    ] = False,
    **options: Unpack[Applying],
) -> None:
    """Execute a plan: the same plan on the same model gives the same bytes."""
    from lwqc.compile.execute import apply_plan
    from lwqc.compile.replayed import replayed
    from lwqc.plans.plan import Plan

    check_dry_run(options)
    read = Plan.load(plan_file)
    files = Files([output], [options.get("report")], read=[plan_file])
    opening: Opened = {**part(Opened, options), "target": read.target}
    if (how := replayed(read, opening.get("data"), opening.get("preprocess"))) is not None:
        opening["preprocess"] = how
    dry_run, fallback = options["dry_run"], options["allow_fallback"]
    with opened(model, files, opening, verify=not dry_run, fallback=fallback) as work:
        done = apply_plan(work, read, allow_drift=allow_drift)
        saved = part(Saved, options)
        finish(done, output, saved, verify=options["verify"], dry_run=dry_run)
