"""The `lwqc` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from lwqc import io
from lwqc.compress import (
    Compressed,
    apply_plan,
    compress_workspace,
    make_plan,
    open_workspace,
)
from lwqc.errors import InputError, LwqcError
from lwqc.goals import Goals, parse_latency, parse_size
from lwqc.measure import latencies
from lwqc.plan import Plan
from lwqc.recipe import Recipe, named, uniform_recipe
from lwqc.report.terminal import divergence_table, latency_text, print_report, size_text
from lwqc.workspace import Workspace, data_files

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make any ONNX model smaller and faster on stock ONNX Runtime.",
)

Model = Annotated[Path, typer.Argument(help="ONNX model", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="where to write the result")]
Target = Annotated[str, typer.Option(help="cpu")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help=".npz, .npy, a folder of .npz, module:callable or random[:N]"),
]
MetricOption = Annotated[str | None, typer.Option(help="module:function(run) -> number")]
ShapeOption = Annotated[
    str, typer.Option("--shape", help="sizes of dynamic dimensions: batch=8,seq=128")
]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable result on stdout")]
DebugOption = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
PlanOut = Annotated[Path | None, typer.Option("--plan-out", help="also write the plan as JSON")]
Details = Annotated[bool, typer.Option("--details", help="print one row per site")]
SizeOption = Annotated[str | None, typer.Option("--max-size", help="0.25 of the original, or 20MB")]
LatencyOption = Annotated[
    str | None, typer.Option("--max-latency", help="0.5 of the original, or 8ms")
]
BitsOption = Annotated[float | None, typer.Option("--avg-bits", help="stored bits per weight")]
DropOption = Annotated[
    float | None,
    typer.Option("--max-drop", help="allowed loss: of the metric, else 1 - mean cosine"),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="name or .toml; see `lwqc recipes`")]
External = Annotated[
    bool | None,
    typer.Option("--external-data/--inline", help="weights in a file of their own (default: auto)"),
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="measure the saved file")]
Seed = Annotated[int, typer.Option(help="seed of random data")]


@app.command()
def compress(
    model: Model,
    output: Output,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    recipe: RecipeOption = "auto",
    max_size: SizeOption = None,
    max_latency: LatencyOption = None,
    avg_bits: BitsOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = "",
    plan_out: PlanOut = None,
    external: External = None,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compress a model: the fastest within 1 % loss, or the best within a budget."""
    with _workspace(model, target, data, metric, shape, seed, output) as work:
        goals = _goals(max_size, max_latency, avg_bits, max_drop)
        _finish(
            compress_workspace(work, goals, recipe),
            output,
            plan_out,
            external,
            True,
            details,
            as_json,
        )


@app.command()
def quantize(
    model: Model,
    output: Output,
    bits: Annotated[str, typer.Option(help="8, 4, 2 or mixed")] = "8",
    activations: Annotated[str, typer.Option(help="none, dynamic or static")] = "none",
    ranges: Annotated[str, typer.Option(help="minmax, percentile, mse or entropy")] = "mse",
    search: Annotated[
        bool, typer.Option("--search/--no-search", help="scales by error search or plain range")
    ] = True,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    max_size: SizeOption = None,
    avg_bits: BitsOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = "",
    plan_out: PlanOut = None,
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Quantize all sites alike, or with mixed bits under a budget."""
    recipe = _quantize_recipe(bits, activations, ranges, search)
    with _workspace(model, target, data, metric, shape, seed, output) as work:
        work.skip_checks = not verify
        goals = _goals(max_size, None, avg_bits, max_drop)
        _finish(
            compress_workspace(work, goals, recipe),
            output,
            plan_out,
            external,
            verify,
            details,
            as_json,
        )


def _quantize_recipe(bits: str, activations: str, ranges: str, search: bool) -> Recipe:
    if bits == "mixed":
        return Recipe(name="mixed", description="", allocator="knapsack")
    if not bits.isdigit():
        raise InputError(f"--bits {bits}: expected 8, 4, 2 or mixed")
    return uniform_recipe(int(bits), activations, ranges, search)


@app.command()
def plan(
    model: Model,
    output: Output,
    target: Target = "cpu",
    data: DataOption = None,
    metric: MetricOption = None,
    recipe: RecipeOption = "auto",
    max_size: SizeOption = None,
    max_latency: LatencyOption = None,
    avg_bits: BitsOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = "",
    seed: Seed = 0,
    debug: DebugOption = False,
) -> None:
    """Decide as `compress` does, and write only the plan."""
    with _workspace(model, target, data, metric, shape, seed, output) as work:
        made = make_plan(work, _goals(max_size, max_latency, avg_bits, max_drop), recipe)
        made.save(output)
        _err().print(f"{output}: {len(made.quantize)} of {len(work.sites)} sites planned")


@app.command(name="apply")
def apply_command(
    model: Model,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan written by `lwqc plan`")],
    output: Output,
    data: DataOption = None,
    metric: MetricOption = None,
    shape: ShapeOption = "",
    external: External = None,
    verify: Verify = True,
    seed: Seed = 0,
    details: Details = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Execute a plan: the same plan on the same model gives the same bytes."""
    read = Plan.load(plan_file)
    with _workspace(model, read.target, data, metric, shape, seed, output) as work:
        _finish(apply_plan(work, read), output, None, external, verify, details, as_json)


@app.command()
def inspect(
    model: Model,
    sites: Annotated[bool, typer.Option("--sites", help="one row per quantizable site")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="one row per costly node")] = False,
    shape: ShapeOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show inputs, outputs, quantizable sites and the cost of each node."""
    from lwqc.inspection import inspect_model
    from lwqc.report.inspection import print_inspection

    found = inspect_model(io.load(model), str(model), _dims(shape))
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_inspection(found, Console(), sites=sites or not cost, cost=cost)


@app.command()
def verify(
    original: Annotated[Path, typer.Argument(help="reference model")],
    candidate: Annotated[Path, typer.Argument(help="model to compare with it")],
    data: DataOption = None,
    metric: MetricOption = None,
    max_drop: DropOption = None,
    shape: ShapeOption = "",
    seed: Seed = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare the outputs of two models on the same data."""
    from lwqc.backends.session import Session
    from lwqc.measure import worst_drop

    with _workspace(original, "cpu", data, metric, shape, seed, None) as work:
        io.load(candidate)
        session = Session(candidate, label=str(candidate))
        found = work.divergence(session)
        drop = work.drop(session) if work.metric else worst_drop(found)
        if as_json:
            rows = {n: vars(d) for n, d in found.items()}
            print(json.dumps({"drop": drop, "outputs": rows}, default=str, indent=1))
        else:
            Console().print(divergence_table(found))
            Console().print(f"drop {drop:.5g} on {work.data.description}")
        if max_drop is not None and drop > max_drop:
            _err().print(f"drop {drop:.5g} is above the allowed {max_drop:.5g}")
            raise typer.Exit(3)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help="models, timed side by side")],
    data: DataOption = None,
    shape: ShapeOption = "",
    seconds: Annotated[float, typer.Option(help="time per model")] = 2.0,
    seed: Seed = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time models on the same input, alternating their order."""
    from lwqc.backends.session import Session

    with _workspace(models[0], "cpu", data, None, shape, seed, None) as work:
        for path in models:
            io.load(path)
        feeds = work.data.first()
        sessions = [Session(path, label=str(path)) for path in models]
        found = latencies(sessions, feeds, seconds)
    if as_json:
        rows = {str(p): vars(t) for p, t in zip(models, found, strict=True)}
        print(json.dumps(rows, indent=1))
        return
    for path, latency in zip(models, found, strict=True):
        ratio = found[0].median_ms / latency.median_ms
        size = size_text(
            path.stat().st_size + sum(f.stat().st_size for f in data_files(io.load(path)))
        )
        Console().print(f"{path}: {latency_text(latency)}, {ratio:.2f}x, {size}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="module:callable returning (module, inputs)")],
    output: Output,
    external: External = None,
    debug: DebugOption = False,
) -> None:
    """Convert a torch model to ONNX."""
    from lwqc.frontends.torch import convert as convert_torch

    io.check_output(output, [])
    saved = io.save(convert_torch(source), output, external_data=external)
    _err().print(f"{saved.path}: {size_text(saved.size_bytes)}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="show this one in full")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the named recipes."""
    known = named()
    if name is not None and name not in known:
        raise InputError(f"recipe {name!r} is not known; expected one of {', '.join(known)}")
    chosen = [known[name]] if name else list(known.values())
    if as_json or name:
        print(json.dumps([r.model_dump(mode="json") for r in chosen], indent=1))
    else:
        for recipe in chosen:
            Console().print(f"[bold]{recipe.name}[/bold]: {recipe.description}")


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="keep the result")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compress a small trained digit classifier that comes with lwqc."""
    import tempfile

    from lwqc.demo import digits

    with (
        tempfile.TemporaryDirectory() as folder,
        resources.as_file(resources.files("lwqc") / "demo" / "digits.onnx") as model,
    ):
        target = output or Path(folder) / "digits.lwqc.onnx"
        with _progress() as report:
            work = open_workspace(
                model, data=digits.calibration(), metric=digits.accuracy, progress=report
            )
            done = compress_workspace(work, Goals(max_drop=None), "auto")
        _finish(done, target, None, None, True, False, as_json)


def main() -> None:
    """Entry point: one line per error, and the exit codes of the design."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except LwqcError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (typer.Exit, typer.Abort) as error:
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except MemoryError:
        _fail("out of memory", 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            _fail(_usage(error), 2)
        if debug:
            raise
        _fail(f"internal error: {error!r}; run again with --debug", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message} (see lwqc --help)"


def _fail(message: str, code: int) -> None:
    print(f"lwqc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _err() -> Console:
    return Console(stderr=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bars on stderr; nothing when it is not a terminal."""
    console = _err()
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
def _workspace(
    model: Path,
    target: str,
    data: str | None,
    metric: str | None,
    shape: str,
    seed: int,
    output: Path | None,
) -> Iterator[Workspace]:
    """Load everything, refusing a bad output before any work is done."""
    loaded = io.load(model)
    if output is not None:
        io.check_output(output, [model, *data_files(loaded)])
    with _progress() as report:
        yield open_workspace(
            loaded,
            name=model.name,
            target=target,
            data=data,
            metric=metric,
            shapes=_dims(shape),
            seed=seed,
            progress=report,
        )


def _dims(text: str) -> dict[str, int]:
    dims: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if not size.isdigit() or int(size) == 0:
            raise InputError(f"--shape {part!r}: expected name=size with a size of at least 1")
        dims[name.strip()] = int(size)
    return dims


def _goals(
    max_size: str | None, max_latency: str | None, avg_bits: float | None, max_drop: float | None
) -> Goals:
    return Goals(parse_size(max_size), parse_latency(max_latency), avg_bits, max_drop)


def _finish(
    done: Compressed,
    output: Path,
    plan_out: Path | None,
    external: bool | None,
    verify: bool,
    details: bool,
    as_json: bool,
) -> None:
    """Save, measure, print; exit code 3 when a constraint is not met."""
    if plan_out is not None:
        done.plan.save(plan_out)
    report = done.save(output, external_data=external, verify=verify)
    if as_json:
        print(report.to_json())
    else:
        print_report(report, Console(), details=details)
        if not verify:
            _err().print("not verified: the saved file was neither loaded nor measured")
    if not report.met:
        missed = "; ".join(
            f"{o.name}: asked {o.asked:.6g}, reached {o.reached:.6g} {o.unit}".rstrip()
            for o in report.outcomes
            if not o.met
        )
        print(f"lwqc: constraint not met, best model saved: {missed}", file=sys.stderr)
        raise typer.Exit(3)


if __name__ == "__main__":
    main()
