"""Commands that write a model or a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwqc.cli.options import (
    AllowFallback,
    BitsOption,
    BranchCompensateOption,
    BranchesOption,
    BranchScoreOption,
    ByOption,
    ClusterOption,
    CompensateOption,
    ConstantInputs,
    DataOption,
    DebugOption,
    Details,
    DropOption,
    EffortOption,
    External,
    FastestOption,
    GroupOption,
    JsonOption,
    KindOption,
    LatencyOption,
    LossOption,
    MacsOption,
    MeasureOption,
    MemoryOption,
    MetricOption,
    Model,
    NormaliseOption,
    NoUserCode,
    OriginalOption,
    Output,
    ParetoOption,
    PlanOut,
    QuantizeOption,
    RatioOption,
    RecipeOption,
    ResizableOption,
    ResumeOption,
    ScopeOption,
    ScoreOption,
    Seed,
    ShapeOption,
    SizeOption,
    Target,
    TimeLimitOption,
    Verify,
    WorkersOption,
    as_real,
    as_whole,
)
from lwqc.cli.running import (
    Files,
    app,
    check_bound,
    errors_console,
    finish,
    finish_row,
    opened,
    parse_control,
    row_names,
)
from lwqc.errors import InputError
from lwqc.model.numerals import real, whole
from lwqc.plans.goals import CONVERSION_DROP, Goals, parse_goals

if TYPE_CHECKING:
    from lwqc.plans.recipe import Recipe

_MOST_MODELS = 100  # of a row


@app.command()
def compress(
    model: Model,
    output: Output,
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
    pareto: ParetoOption = None,
    shape: ShapeOption = None,
    plan_out: PlanOut = None,
    external: External = None,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    print_pipeline: Annotated[
        bool, typer.Option("--print-pipeline", help="print the passes that the plan runs")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Compress a model: the fastest within 1 % loss, or the best within a budget."""
    from lwqc.compile.plan_pipelines import pipelines_of
    from lwqc.decide.compress import compress_workspace
    from lwqc.decide.strategy import row as row_of_models
    from lwqc.plans.recipe import find

    if print_pipeline and pareto is not None:
        raise InputError("--print-pipeline tells of one model: leave out --pareto")
    if not quantize:
        recipe = only_clean(recipe, max_size, avg_bits, max_macs, max_memory)
    chosen = find(recipe)
    control = parse_control(output, effort, time_limit, workers, cluster, resume, seed)
    goals = parse_goals(max_size, max_latency, avg_bits, max_drop, fastest, max_macs, max_memory)
    if pareto is not None and not 2 <= pareto <= _MOST_MODELS:
        raise InputError(f"--pareto {pareto}: expected 2 to {_MOST_MODELS} models")
    row = [] if pareto is None else [p for i in range(pareto) for p in row_names(output, i + 1)]
    files = Files([output], [plan_out, *row], [control.log], [recipe])
    with opened(
        model,
        target,
        data,
        metric,
        shape,
        seed,
        files,
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        if pareto is not None:
            finish_row(row_of_models(work, goals, chosen, control, pareto), output, as_json)
            return
        done = compress_workspace(work, goals, chosen, control)
        if print_pipeline:
            for stage, text in pipelines_of(done.plan).items():
                errors_console().print(f"{stage}: {text}", soft_wrap=True)
        finish(
            done,
            output,
            plan_out,
            external,
            True,
            details,
            as_json,
        )


def only_clean(recipe: str, *budgets: object) -> str:
    """The recipe of `--no-quantize`. Raises InputError where something else is asked for too."""
    if recipe != "auto" or any(budget is not None for budget in budgets):
        raise InputError("--no-quantize only cleans up: leave out --recipe and budgets")
    return "clean"


@app.command()
def quantize(
    model: Model,
    output: Output,
    bits: Annotated[str, typer.Option(help="8, 4, 3 (stored in 4), 2 or mixed")] = "8",
    activations: Annotated[str, typer.Option(help="none, dynamic or static")] = "none",
    ranges: Annotated[str, typer.Option(help="minmax, percentile, mse or entropy")] = "mse",
    method: Annotated[
        str,
        typer.Option(
            help="rtn, hqq or k-quant; with --data gptq, gptq-order, gptq-refit, gpfq or descent"
        ),
    ] = "rtn",
    sequential: Annotated[
        bool, typer.Option("--sequential", help="each layer sees the quantized ones before it")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="scales by error search or plain range")
    ] = True,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    max_size: SizeOption = None,
    avg_bits: BitsOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = None,
    plan_out: PlanOut = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Quantize all sites alike, or with mixed bits under a budget."""
    from lwqc.decide.compress import compress_workspace
    from lwqc.quant.methods import DATA_METHODS

    check_bound(max_drop, verify)
    goals = parse_goals(max_size, avg_bits=avg_bits, max_drop=max_drop)
    recipe = _quantize_recipe(bits, activations, ranges, search, method, sequential)
    if method in DATA_METHODS and data is None:
        raise InputError(f"--method {method} looks at the data: give --data")
    with opened(
        model,
        target,
        data,
        metric,
        shape,
        seed,
        Files([output], [plan_out]),
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        work.skip_checks = not verify
        finish(
            compress_workspace(work, goals, recipe, exact=True),
            output,
            plan_out,
            external,
            verify,
            details,
            as_json,
        )


@app.command()
def prune(
    model: Model,
    output: Output,
    ratio: RatioOption = None,
    by: ByOption = None,
    recipe: Annotated[str, typer.Option(help="a recipe that prunes; see `lwqc recipes`")] = "",
    score: ScoreOption = None,
    scope: ScopeOption = None,
    normalise: NormaliseOption = None,
    compensate: CompensateOption = None,
    group: GroupOption = None,
    round_to: Annotated[
        int | None, typer.Option(parser=as_whole, help="keep widths multiples of this")
    ] = None,
    min_channels: Annotated[
        int | None, typer.Option(parser=as_whole, help="each group keeps at least this many")
    ] = None,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="also groups that a normalisation mixes")
    ] = False,
    resizable_output: ResizableOption = None,
    loss: LossOption = None,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = None,
    plan_out: PlanOut = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove whole channels, heads and hidden units, or with --recipe slicegpt narrow streams."""
    from lwqc.decide.structural import channel_job, pruning_recipe
    from lwqc.model.user_code import load_callable

    wanted = {
        "ratio": ratio, "by": by, "score": score, "scope": scope, "normalise": normalise,
        "compensate": compensate, "round_to": round_to, "min_channels": min_channels,
        "overrides": _shares(group) if group else None, "statistics": statistics or None,
        "resizable_outputs": tuple(resizable_output) if resizable_output else None,
        "loss": load_callable(loss) if loss else None,
    }  # fmt: skip
    check_bound(max_drop, verify)
    goals = Goals(max_drop=max_drop)
    job = channel_job(
        pruning_recipe(recipe, has_data=data is not None),
        goals,
        **{name: value for name, value in wanted.items() if value is not None},
    )
    with opened(
        model,
        target,
        data,
        metric,
        shape,
        seed,
        Files([output], [plan_out], read=[recipe]),
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        work.skip_checks = not verify
        finish(job(work).make(), output, plan_out, external, verify, details, as_json)


@app.command()
def drop(
    model: Model,
    output: Output,
    branches: BranchesOption = None,
    recipe: Annotated[str, typer.Option(help="one that removes branches")] = "",
    kind: KindOption = None,
    score: BranchScoreOption = None,
    measure: MeasureOption = None,
    compensate: BranchCompensateOption = None,
    keep_first: Annotated[
        int, typer.Option(parser=as_whole, help="that many at the start stay")
    ] = 0,
    keep_last: Annotated[int, typer.Option(parser=as_whole, help="that many at the end stay")] = 0,
    protect: Annotated[
        float | None,
        typer.Option(parser=as_real, help="share at the start that trials spare at first"),
    ] = None,
    max_divergence: Annotated[
        float | None,
        typer.Option(parser=as_real, help="removals that would exceed it are not made"),
    ] = None,
    keep_signature: Annotated[
        bool, typer.Option("--keep-signature", help="cache inputs and outputs stay")
    ] = False,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = None,
    plan_out: PlanOut = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove whole residual branches, or with --recipe shallow make adjacent ones parallel."""
    from lwqc.decide.structural import branch_job, dropping_recipe

    check_bound(max_drop, verify)
    goals = Goals(max_drop=max_drop)
    wanted = {
        **_amount(branches), "kind": kind, "score": score, "measure": measure,
        "compensate": compensate, "protect": protect, "max_divergence": max_divergence,
        "seed": seed or None,
    }  # fmt: skip
    given = {"keep_first": keep_first, "keep_last": keep_last, "keep_signature": keep_signature}
    wanted |= {name: value or None for name, value in given.items()}
    job = branch_job(
        dropping_recipe(recipe, has_data=data is not None),
        goals,
        **{name: value for name, value in wanted.items() if value is not None},
    )
    with opened(
        model,
        target,
        data,
        metric,
        shape,
        seed,
        Files([output], [plan_out], read=[recipe]),
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        work.skip_checks = not verify
        finish(job(work).make(), output, plan_out, external, verify, details, as_json)


def _amount(text: str | None) -> dict[str, Any]:
    """A count, or a share of all."""
    if text is None:
        return {}
    try:
        if text.endswith("%"):
            return {"share": real(text[:-1]) / 100}
        return {"count": whole(text)}
    except ValueError as error:
        raise InputError(f"--branches {text}: expected a count or a share such as 25%") from error


def _shares(texts: list[str]) -> dict[str, float]:
    shares = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        try:
            shares[name] = real(share)
        except ValueError as error:
            raise InputError(f"--group {text!r}: expected GROUP=share") from error
    return shares


def _quantize_recipe(bits: str, *settings: Any) -> Recipe:
    from lwqc.plans.recipe import uniform_recipe

    if bits == "mixed":
        plain = uniform_recipe(4, *settings)
        if plain.activations != "none" or not plain.search or plain.sequential:
            raise InputError(
                "--bits mixed chooses activations and scales itself: leave out "
                "--activations, --no-search and --sequential"
            )
        return plain.model_copy(update={"name": "mixed", "allocator": "knapsack"})
    try:
        width = whole(bits)
    except ValueError as error:
        raise InputError(f"--bits {bits}: expected 8, 4, 3, 2 or mixed") from error
    return uniform_recipe(width, *settings)


@app.command()
def lower(
    model: Model,
    output: Output,
    target: Target = "cpu",
    floats: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default: the target's")
    ] = None,
    half_boundary: Annotated[
        bool, typer.Option("--half-boundary", help="graph inputs and outputs get the type too")
    ] = False,
    profile: Annotated[
        str, typer.Option(help="sizes that engines are built for: batch=1:8:64,seq=16:128:512")
    ] = "",
    allow_fallback: AllowFallback = False,
    engines: Annotated[
        Path | None, typer.Option(help="also write a model with built engines (needs the GPU)")
    ] = None,
    data: DataOption = None,
    metric: MetricOption = None,
    max_drop: Annotated[
        float, typer.Option(parser=as_real, help="allowed loss of the conversion")
    ] = CONVERSION_DROP,
    shape: ShapeOption = None,
    plan_out: PlanOut = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    constant_inputs: ConstantInputs = False,
    no_user_code: NoUserCode = False,
    original: OriginalOption = None,
    debug: DebugOption = False,
) -> None:
    """Bring a float or quantized model into the form that a target runs best."""
    from lwqc.backends.device_bench import check_engines
    from lwqc.compile.execute import execute
    from lwqc.decide.lower import lower_plan
    from lwqc.decide.profiles import parse_profile

    sizes = parse_profile(profile)
    goals = Goals(max_drop=max_drop if verify else None)
    with opened(
        model,
        target,
        data,
        metric,
        shape,
        seed,
        Files([output], [plan_out, engines]),
        constant_inputs=constant_inputs,
        original=original,
    ) as work:
        work.skip_checks, work.allow_fallback = not verify, allow_fallback
        if engines is not None:
            check_engines(work.target)
        made = lower_plan(work, floats=floats, boundary=half_boundary, profile=sizes)
        done = execute(work, goals, made)
        finish(done, output, plan_out, external, verify, details, as_json, engines)
