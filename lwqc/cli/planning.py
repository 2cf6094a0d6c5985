"""Commands that make, show, compare and execute plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwqc.cli.compressing import only_clean
from lwqc.cli.hosting import answer
from lwqc.cli.options import (
    AllowDrift,
    AllowFallback,
    BitsOption,
    ClusterOption,
    ConstantInputs,
    DataOption,
    DebugOption,
    Details,
    DropOption,
    EffortOption,
    External,
    FastestOption,
    JsonOption,
    LatencyOption,
    MacsOption,
    MemoryOption,
    MetricOption,
    Model,
    NoUserCode,
    OriginalOption,
    Output,
    QuantizeOption,
    RecipeOption,
    ResumeOption,
    Seed,
    ShapeOption,
    SizeOption,
    Target,
    TimeLimitOption,
    Verify,
    WorkersOption,
)
from lwqc.cli.running import (
    Files,
    app,
    errors_console,
    finish,
    opened,
    parse_control,
)
from lwqc.errors import InputError
from lwqc.plans.goals import parse_goals


@app.command()
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
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    recipe: RecipeOption = "auto",
    quantize: QuantizeOption = True,
    max_size: SizeOption = None,
    max_latency: LatencyOption = None,
    max_macs: MacsOption = None,
    max_memory: MemoryOption = None,
    avg_bits: BitsOption = None,
    max_drop: DropOption = None,
    fastest: FastestOption = False,
    effort: EffortOption = "medium",
    time_limit: TimeLimitOption = None,
    workers: WorkersOption = None,
    cluster: ClusterOption = "",
    resume: ResumeOption = False,
    shape: ShapeOption = None,
    seed: Seed = 0,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Decide as `compress` does, and write only the plan; or show plans."""
    from lwqc.cli.plans import print_diff, print_plan, print_schema, read_plan
    from lwqc.cli.report.plan_text import plan_line
    from lwqc.decide.compress import make_plan
    from lwqc.plans.recipe import find

    if schema:
        print_schema("plan")
    elif diff is not None:
        print_diff(*diff)
    elif model is None:
        raise InputError("give a model to plan for, a plan with --text, or two plans with --diff")
    elif text and (read := read_plan(model)) is not None:
        print_plan(read)
    elif output is None and not text:
        raise InputError("-o says where the plan goes; --text prints it")
    elif output is None and resume:
        raise InputError("--resume goes on from OUTPUT.search: give -o")
    else:
        if not quantize:
            recipe = only_clean(recipe, max_size, avg_bits, max_macs, max_memory)
        control = parse_control(output, effort, time_limit, workers, cluster, resume, seed)
        chosen = find(recipe)
        goals = parse_goals(
            max_size, max_latency, avg_bits, max_drop, fastest, max_macs, max_memory
        )
        outputs = [] if output is None else [output]
        files = Files(outputs, [], [control.log], [recipe])
        with opened(
            model, target, data, metric, shape, seed, files,
            constant_inputs=constant_inputs, original=original,
        ) as work:  # fmt: skip
            made = make_plan(work, goals, chosen, control)
            if output is not None:
                made.save(output)
                line = plan_line(made, len(work.sites))
                answer({"output": str(output), "planned": line})
                errors_console().print(f"{output}: {line}")
            if text:
                print_plan(made)


@app.command(name="apply")
def apply_command(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan written by `lwqc plan`")],
    output: Output,
    data: DataOption = None,
    metric: MetricOption = None,
    shape: ShapeOption = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    allow_drift: AllowDrift = False,
    allow_fallback: AllowFallback = False,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Execute a plan: the same plan on the same model gives the same bytes."""
    from lwqc.compile.execute import apply_plan
    from lwqc.plans.plan import Plan

    read = Plan.load(plan_file)
    files = Files([output], read=[plan_file])
    with opened(
        model,
        read.target,
        data,
        metric,
        shape,
        seed,
        files,
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        work.allow_fallback = allow_fallback
        done = apply_plan(work, read, allow_drift=allow_drift)
        finish(done, output, None, external, verify, details, as_json)
