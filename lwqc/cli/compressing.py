"""Commands that write a model or a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from lwqc.cli.completion import VALUES
from lwqc.cli.options import (
    Changing,
    Compressing,
    DroppingCommand,
    Lowering,
    Model,
    Opened,
    Output,
    PruningCommand,
    Quantize,
    Quantizing,
    RecipeName,
    Resume,
    Saved,
    as_share,
    as_whole,
)
from lwqc.cli.running import (
    Files,
    check_bound,
    check_dry_run,
    errors_console,
    finish,
    finish_row,
    log_name,
    opened,
    row_names,
)
from lwqc.cli.sections import command
from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.model.numerals import whole
from lwqc.plans.goals import CONVERSION_DROP, Goals
from lwqc.plans.options import Budgets, Dropping, Loss, Pruning, Storage
from lwqc.plans.output_bounds import OutputWeights
from lwqc.plans.spelled_out import part

if TYPE_CHECKING:
    from lwqc.compile.version import Version
    from lwqc.decide.decided import Decided
    from lwqc.plans.recipe import Recipe

_MOST_MODELS = 100  # of a row


@command(Compressing)
def compress(
    model: Model,
    output: Output,
    recipe: RecipeName = "auto",
    quantize: Quantize = True,
    resume: Resume = False,
    pareto: Annotated[
        int | None,
        typer.Option(
            "--pareto",
            parser=as_whole,
            help="that many models, down to the budget: OUTPUT-1, OUTPUT-2, ...",
        ),
    ] = None,
    print_pipeline: Annotated[
        bool, typer.Option("--print-pipeline", help="print the passes that the plan runs")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump", help="folder for the whole model after each change, by the plan again"
        ),
    ] = None,
    **options: Unpack[Compressing],
) -> None:
    """Compress a model: the fastest within 1 % loss, or the best within a budget."""
    from lwqc.compile.dump_steps import dump_steps
    from lwqc.compile.plan_pipelines import pipelines_of
    from lwqc.decide.compress import compress_version
    from lwqc.decide.search.control import search_control
    from lwqc.decide.strategy import row as row_of_models
    from lwqc.passes.instruments import Dump
    from lwqc.plans.recipe import as_asked, find

    if print_pipeline and pareto is not None:
        raise InputError("--print-pipeline tells of one model: leave out --pareto")
    page = options.get("report")
    if dump is not None and pareto is not None:
        raise InputError("--dump shows how one model is made: leave out --pareto")
    budgets = part(Budgets, options)
    if not quantize:
        recipe = only_clean(recipe, budgets)
    chosen = as_asked(find(recipe), options)
    control = search_control(options, options["seed"], log_name(output), resume)
    goals = Goals(**budgets)
    if pareto is not None and not 2 <= pareto <= _MOST_MODELS:
        raise InputError(f"--pareto {pareto}: expected 2 to {_MOST_MODELS} models")
    bounded = goals.max_drop is not None or isinstance(options.get("weight_outputs"), OutputWeights)
    if pareto is not None and bounded:
        raise InputError("--pareto makes a row of models within the budget: leave out --max-drop")
    row = [] if pareto is None else [p for i in range(pareto) for p in row_names(output, i + 1)]
    files = Files([output], [options.get("plan_out"), page, *row], [control.log], [recipe])
    with opened(model, files, part(Opened, options)) as work:
        if pareto is not None:
            models = row_of_models(work, goals, chosen, control, pareto)
            finish_row(models, output, options["as_json"], page)
            return
        shown = None if dump is None else Dump(dump)
        done = compress_version(work, goals, chosen, control)
        if print_pipeline:
            for stage, text in pipelines_of(done.plan).items():
                errors_console().print(f"{stage}: {text}", soft_wrap=True)
        if shown is not None:
            dump_steps(done, shown)
        finish(done, output, part(Saved, options))


def only_clean(recipe: str, budgets: Budgets) -> str:
    """The recipe of `--no-quantize`. Raises InputError where something else is asked for too."""
    bounded = budgets.keys() - {"max_latency", "max_drop", "fastest"}
    if recipe != "auto" or bounded:
        raise InputError("--no-quantize only cleans up: leave out --recipe and budgets")
    return "clean"


@command(Quantizing)
def quantize(
    model: Model,
    output: Output,
    bits: Annotated[str, typer.Option(help="8, 4, 3 (stored in 4), 2 or mixed")] = "8",
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="instead of --bits, by name: w3b32hd (3 bits, dense), vq5x2 (codebooks)",
            autocompletion=VALUES["format"],
        ),
    ] = None,
    activations: Annotated[
        str,
        typer.Option(help="none, dynamic or static", autocompletion=VALUES["activations"]),
    ] = "none",
    ranges: Annotated[
        str,
        typer.Option(help="minmax, percentile, mse or entropy", autocompletion=VALUES["ranges"]),
    ] = "mse",
    method: Annotated[
        str,
        typer.Option(
            help="rtn, hqq or k-quant; with --data gptq, gptq-order, gptq-refit, gpfq or descent, "
            "and learned with torch: adaround, brecq, qvlm or distill",
            autocompletion=VALUES["method"],
        ),
    ] = "rtn",
    sequential: Annotated[
        bool, typer.Option("--sequential", help="each layer sees the quantized ones before it")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="scales by error search or plain range")
    ] = True,
    **options: Unpack[Quantizing],
) -> None:
    """Quantize all sites alike, or with mixed bits under a budget."""
    from lwqc.decide.compress import compress_version
    from lwqc.plans.recipe import with_embedding_rank
    from lwqc.quant.methods import DATA_METHODS

    check_bound(options)
    check_dry_run(options)
    goals = Goals(**part(Storage, options))
    if fmt is not None and bits == "mixed":
        raise InputError("--format is one for all: leave out --bits mixed")
    if fmt is not None and bits != "8":
        raise InputError(f"--format {fmt} says the bits: leave out --bits {bits}")
    plain = _quantize_recipe(bits, activations, ranges, search, method, sequential, fmt)
    recipe = with_embedding_rank(plain, options.get("embedding_rank"))
    if recipe.method in DATA_METHODS and "data" not in options:
        raise InputError(f"--method {method} looks at the data: give --data")
    files = Files([output], [options.get("plan_out"), options.get("report")])
    verify = options["verify"]
    dry_run = options["dry_run"]
    with opened(model, files, part(Opened, options), verify=verify and not dry_run) as work:
        done = compress_version(work, goals, recipe, exact=True)
        finish(done, output, part(Saved, options), verify=verify, dry_run=dry_run)


@command(PruningCommand)
def prune(
    model: Model,
    output: Output,
    recipe: Annotated[
        str,
        typer.Option(
            help="a recipe that prunes; see `lwqc recipes`", autocompletion=VALUES["prune recipe"]
        ),
    ] = "",
    **options: Unpack[PruningCommand],
) -> None:
    """Remove whole channels, heads and hidden units, or with --recipe slicegpt narrow streams."""
    from lwqc.decide.structural import channel_job, pruning_recipe

    chosen = pruning_recipe(recipe, has_data="data" in options)
    job = channel_job(chosen, _checked_goals(options), **part(Pruning, options))
    _change_structure(model, output, recipe, job, options)


@command(DroppingCommand)
def drop(
    model: Model,
    output: Output,
    branches: Annotated[
        str | None, typer.Option("--branches", help="how many go: 4, or 25% of them")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="one that removes branches", autocompletion=VALUES["drop recipe"]),
    ] = "",
    **options: Unpack[DroppingCommand],
) -> None:
    """Remove whole residual branches, or with --recipe shallow make adjacent ones parallel."""
    from lwqc.decide.structural import branch_amount, branch_job, dropping_recipe

    changes: dict[str, Any] = {**branch_amount(branches), **part(Dropping, options)}
    if options["seed"]:
        changes["seed"] = options["seed"]
    only_tokens = "tokens" in changes and branches is None
    chosen = dropping_recipe(recipe, has_data="data" in options, tokens=only_tokens)
    job = branch_job(chosen, _checked_goals(options), **changes)
    _change_structure(model, output, recipe, job, options)


def _checked_goals(options: Changing) -> Goals:
    """What one change of the structure may cost."""
    check_bound(options)
    return Goals(**part(Loss, options))


def _change_structure(
    model: Path,
    output: Path,
    recipe: str,
    job: Callable[[Version], Decided],
    options: Changing,
) -> None:
    """Do a job on a model and save what comes of it."""
    files = Files([output], [options.get("plan_out"), options.get("report")], read=[recipe])
    verify = options["verify"]
    with opened(model, files, part(Opened, options), verify=verify) as work:
        finish(job(work).make(), output, part(Saved, options), verify=verify)


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
        known = expected(bits, ["8", "4", "3", "2", "mixed"])
        raise InputError(f"--bits {bits}: {known}") from error
    return uniform_recipe(width, *settings)


@command(Lowering)
def lower(
    model: Model,
    output: Output,
    floats: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default: the target's")
    ] = None,
    half_boundary: Annotated[
        bool, typer.Option("--half-boundary", help="graph inputs and outputs get the type too")
    ] = False,
    profile: Annotated[
        str, typer.Option(help="sizes that engines are built for: batch=1:8:64,seq=16:128:512")
    ] = "",
    engines: Annotated[
        Path | None, typer.Option(help="also write a model with built engines (needs the GPU)")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(parser=as_share, help="allowed loss of the conversion")
    ] = CONVERSION_DROP,
    max_class_drop: Annotated[
        float | None,
        typer.Option(parser=as_share, help="samples that any class may lose, with --metric top1"),
    ] = None,
    **options: Unpack[Lowering],
) -> None:
    """Bring a float or quantized model into the form that a target runs best."""
    from lwqc.backends.device_bench import check_engines
    from lwqc.compile.execute import execute
    from lwqc.compile.losses import check_classes
    from lwqc.decide.lower import lower_plan
    from lwqc.decide.profiles import parse_profile

    check_dry_run(options, engines=engines)
    sizes = parse_profile(profile)
    verify, dry_run = options["verify"], options["dry_run"]
    checks = verify and not dry_run
    goals = Goals(max_drop=max_drop, max_class_drop=max_class_drop) if checks else Goals()
    files = Files([output], [options.get("plan_out"), engines, options.get("report")])
    fallback = options["allow_fallback"]
    with opened(model, files, part(Opened, options), verify=checks, fallback=fallback) as work:
        check_classes(work, goals)
        if engines is not None:
            check_engines(work.job.target)
        made = lower_plan(work, floats=floats, boundary=half_boundary, profile=sizes)
        done = execute(work, goals, made)
        saved = part(Saved, options)
        finish(done, output, saved, verify=verify, engines=engines, dry_run=dry_run)
