"""Commands that look at models, time or convert them, or show what lwqc can do."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from lwqc.cli.completion import VALUES
from lwqc.cli.hosting import answer, work_begins
from lwqc.cli.options import (
    Benching,
    Converting,
    Inspecting,
    Model,
    Opened,
    Output,
    Showing,
    as_real,
)
from lwqc.cli.progress import at, end_progress, progress_bars
from lwqc.cli.running import errors_console, finish, opened
from lwqc.cli.sections import command
from lwqc.cli.shown import put
from lwqc.cli.telling import is_quiet, is_verbose
from lwqc.errors import InputError
from lwqc.model.numerals import size_text
from lwqc.plans.spelled_out import part

if TYPE_CHECKING:
    pass


@command(Inspecting)
def inspect(
    model: Model,
    sites: Annotated[bool, typer.Option("--sites", help="one row per quantizable site")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="one row per costly node")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="what can be pruned together, and what cannot")
    ] = False,
    branches: Annotated[
        bool, typer.Option("--branches", help="residual branches by block, and what they cost")
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="with --branches: what they do on this data")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option("--preprocess", help="how that data becomes inputs")
    ] = None,
    dot: Annotated[
        Path | None,
        typer.Option("--dot", help="draw groups or branches into this file, for Graphviz"),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="the same as a picture; needs Graphviz's `dot`")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="another version of it: what differs")
    ] = None,
    **options: Unpack[Inspecting],
) -> None:
    """Show inputs, outputs, quantizable sites, prunable groups, branches and costs."""
    from lwqc.cli.drawing import draw
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.inspection import print_comparison, print_inspection
    from lwqc.decide.explain.comparison import compare
    from lwqc.decide.explain.inspection import inspect_model
    from lwqc.decide.explain.structure import structure, to_dot
    from lwqc.model import io
    from lwqc.model.data_files import data_files
    from lwqc.model.user_code import loaded_files
    from lwqc.runtime.data import data_sources, default_sizes, open_data, required_inputs
    from lwqc.runtime.served import as_sequence

    resizable = tuple(options.get("resizable_outputs", ()))
    constant_inputs, as_json = options["constant_inputs"], options["as_json"]
    if data is not None and not branches:
        raise InputError("--data tells what residual branches do: give --branches too")
    loaded = io.load(model, constant_inputs=constant_inputs)
    dims = next(iter(as_sequence(options.get("shapes"))), {})
    default_sizes(required_inputs(loaded), dims)  # refuses what no input has
    feeds = (
        open_data(data, loaded, shapes=dims, preprocess=preprocess) if data is not None else None
    )
    found = inspect_model(loaded, str(model), dims, resizable, feeds)
    if dot is not None or svg is not None:
        text = to_dot(structure(found, groups=groups or not branches, branches=branches))
        files = [
            model,
            *data_files(loaded),
            *data_sources(data, preprocess),
            *map(Path, loaded_files()),
        ]
        files += [against, *data_files(io.load(against))] if against is not None else []
        draw(text, dot, svg, inputs=files)
    if against is not None:
        other = io.load(against, constant_inputs=constant_inputs)
        compared = compare(found, inspect_model(other, str(against), dims, resizable))
    end_progress()
    if against is not None:
        if as_json:
            print(json.dumps(compared.to_dict(), indent=1))
        else:
            print_comparison(compared, Console())
    elif as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        everything = is_verbose()
        print_inspection(
            found,
            Console(),
            sites=sites or everything or not (cost or groups or branches),
            cost=cost or everything,
            groups=groups or everything,
            branches=branches or everything,
        )


@command(Benching)
def bench(
    models: Annotated[list[Path], typer.Argument(help="models, timed side by side")],
    seconds: Annotated[float, typer.Option(parser=as_real, help="time per model")] = 2.0,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="replay a recorded CUDA graph")
    ] = False,
    nhwc: Annotated[
        bool, typer.Option("--nhwc", help="channels last in convolutions (cuda)")
    ] = False,
    **options: Unpack[Benching],
) -> None:
    """Time models on the same input, alternating their order; on a GPU without transfers."""
    from lwqc.backends.device_bench import device_latencies
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.terminal import latency_text
    from lwqc.model import io
    from lwqc.model.data_files import stored_bytes
    from lwqc.runtime.measure import latencies
    from lwqc.runtime.proof import prove
    from lwqc.runtime.session import SessionSettings

    if not (seconds > 0 and math.isfinite(seconds)):
        raise InputError(f"--seconds {seconds}: expected a time above 0")
    elsewhere: dict[str, list[str]] = {}
    fallback = options["allow_fallback"]
    device = _device_options(options["target"] or "", cuda_graph, nhwc)
    with opened(models[0], None, part(Opened, options)) as work:
        for path in models[1:]:
            prove(io.load(path), work.job.data.fit.first(), str(path))
        served = [s.label for s in work.job.data.serve]
        target = work.job.target
        if target.settings().provider == SessionSettings().provider:
            if reason := target.unmeasured():
                raise InputError(f"target {target.name}: {reason}")
            sessions = [target.session(path, str(path)) for path in models]
            for session, one in product(sessions, work.job.data.serve):
                session(one.feeds)  # what does not take these inputs is told in a line
            found = [latencies(sessions, s.feeds, seconds) for s in work.job.data.serve]
        else:
            found = []
            for one in work.job.data.serve:
                times, elsewhere = device_latencies(
                    target, models, one.feeds, seconds, device, allow_fallback=fallback
                )
                found.append(times)
    sizes = [stored_bytes(io.load(path)) for path in models]
    rows = {
        str(path): {
            "size_bytes": sizes[i],
            "elsewhere": elsewhere.get(str(path), []),
            "latencies": {
                label: vars(times[i]) for label, times in zip(served, found, strict=True)
            },
        }
        for i, path in enumerate(models)
    }
    answer(rows)
    if options["as_json"]:
        print(json.dumps(rows, indent=1))
        return
    for name, lines in elsewhere.items():
        for line in lines:
            Console().print(f"{name}: {line}", style="yellow", highlight=False)
    for i, path in enumerate(models):
        for label, times in zip(served, found, strict=True):
            ratio = times[0].relative / times[i].relative
            text = f"{latency_text(times[i])}, {ratio:.2f}x, {size_text(sizes[i])}"
            Console().print(f"{path}: {text}" if len(served) == 1 else f"{path} {label}: {text}")


def _device_options(target: str, cuda_graph: bool, nhwc: bool) -> dict[str, str]:
    if target.startswith("cpu") and (cuda_graph or nhwc):
        raise InputError("--cuda-graph and --nhwc are for a GPU: give --target")
    if nhwc and target != "cuda":
        raise InputError(f"--nhwc: target {target} chooses layouts itself")
    options = {"prefer_nhwc": "1"} if nhwc else {}
    if cuda_graph:
        options["enable_cuda_graph" if target == "cuda" else "trt_cuda_graph_enable"] = "1"
    return options


@command(Converting)
def convert(
    source: Annotated[
        str, typer.Argument(help="file or folder of a model, or module:callable returning one")
    ],
    output: Output,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="load files that may hold code, such as pickles")
    ] = False,
    task: Annotated[str, typer.Option("--task", help="of a model of Hugging Face's")] = "",
    inputs: Annotated[
        str, typer.Option("--inputs", help=".npz of example inputs, for TorchScript")
    ] = "",
    **options: Unpack[Converting],
) -> None:
    """Convert a model of torch, Keras, JAX, scikit-learn and others to ONNX."""
    from lwqc.compile.saved_check import save
    from lwqc.frontends.convert import convert as converted
    from lwqc.frontends.convert import files_of
    from lwqc.model import io
    from lwqc.model.metadata import bare
    from lwqc.model.user_code import loaded_files

    work_begins()
    at("opening")
    io.check_output(output, [*files_of(source), *([inputs] if inputs else [])])
    at("converting")
    model = converted(source, trust=trust_code, task=task, inputs=inputs)
    model = model if options["keep_metadata"] else bare(model)
    io.check_output(output, loaded_files())
    at("checking")
    saved = save(model, output, external_data=options.get("external"))
    answer({"output": str(saved.path), "output_bytes": saved.size_bytes})
    if is_quiet():
        return
    console = errors_console()
    for note in model.meta.get("lwqc_notes", ()):
        console.print(note, highlight=False, soft_wrap=True)
    console.print(f"{saved.path}: {size_text(saved.size_bytes)}")


@command(Showing, works=False)
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="show this one in full; a name or a .toml file", autocompletion=VALUES["recipe"]
        ),
    ] = None,
    toml: Annotated[
        bool,
        typer.Option("--toml", help="as a file that --recipe takes, comments included"),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of recipes")
    ] = False,
    **options: Unpack[Showing],
) -> None:
    """List the named recipes, or show one."""
    from lwqc.cli.plans import print_schema
    from lwqc.cli.report.console import Console
    from lwqc.plans.recipe import find, named, source_text

    if schema:
        print_schema("recipe")
        return
    if toml and name is None:
        raise InputError("--toml prints one recipe: give its name")
    chosen = [find(name)] if name else list(named().values())
    if toml and name:
        print(source_text(name), end="")
    elif options["as_json"] or name:
        print(json.dumps([r.model_dump(mode="json") for r in chosen], indent=1))
    elif is_quiet():
        for recipe in chosen:
            put(recipe.name)
    else:
        from lwqc.cli.recipe_list import lines

        for line in lines(sources=is_verbose()):
            Console().print(line, highlight=False, soft_wrap=True)


@command(Showing, works=False)
def extensions(**options: Unpack[Showing]) -> None:
    """List scores, allocators, targets, passes and rules, and the packages that add some."""
    from lwqc.cli.report.console import Console
    from lwqc.graph import rules
    from lwqc.model.extensions import EXTENSIONS
    from lwqc.model.user_code import package_of
    from lwqc.passes import registry

    kinds: list[tuple[str, str, Sequence[str], Collection[EntryPoint]]] = [
        (k.kind, k.group, k.built_in, k.installed().values()) for k in EXTENSIONS
    ]
    passes = [p for name, p in registry.from_packages().items() if name not in registry.BUILT_IN]
    kinds.append(("pass", registry.GROUP, list(registry.BUILT_IN), passes))
    operators = [".".join(filter(None, key)) for key in rules.RULES]
    kinds.append(("rules", rules.GROUP, operators, entry_points(group=rules.GROUP)))
    found = {
        kind: {
            "group": group,
            "built_in": list(built_in),
            "installed": {
                point.name: {"object": point.value, "package": package_of(point)}
                for point in points
            },
        }
        for kind, group, built_in, points in kinds
    }
    if options["as_json"]:
        print(json.dumps(found, indent=1))
        return
    for kind, group, built_in, points in kinds:
        more = (f"{p.name} ({p.value} of {package_of(p)})" for p in points)
        own = [f"{len(built_in)} operators of lwqc"] if kind == "rules" else built_in
        line = f"{kind}, {group}: {', '.join([*own, *more])}"
        Console().print(line, highlight=False, soft_wrap=True)


@command(Showing)
def demo(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="keep the result")] = None,
    **options: Unpack[Showing],
) -> None:
    """Compress a small trained digit classifier that comes with lwqc."""
    from lwqc.cli.demo import digits
    from lwqc.decide.compress import compress_version, open_version
    from lwqc.model.scratch import temporary_folder
    from lwqc.plans.goals import Goals

    with (
        temporary_folder() as folder,
        resources.as_file(resources.files("lwqc.cli.demo") / "digits.onnx") as model,
    ):
        target = output or folder / "digits.lwqc.onnx"
        with progress_bars() as report:
            work = open_version(
                model, data=digits.calibration(), metric=digits.accuracy, progress=report
            )
            done = compress_version(work, Goals(max_drop=None), "auto")
        finish(done, target, {"as_json": options["as_json"]})
