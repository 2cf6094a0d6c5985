"""The Python API; the command line is a thin layer over the same functions.

Whatever takes a model takes what another function made of one, as its first argument or by the
method of the same name: `lwqc.prune(m, data=d).quantize(bits=4).lower(target="cuda")`. Target,
data, metric and shapes travel along unless they are given anew. Budgets are parts of the first
original, and losses, times and sizes are measured against it; channels, branches and sites are
those of the model that the step was given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import apply_plan, execute
from lwqc.compile.workspace import Workspace
from lwqc.decide.compress import Progress, compress_workspace, make_plan, open_workspace
from lwqc.decide.continued import after
from lwqc.decide.explain.inspection import Inspection, inspect_model
from lwqc.decide.lower import lower_plan
from lwqc.decide.search.control import Effort, SearchControl
from lwqc.decide.structural import (
    branch_job,
    channel_job,
    dropping_recipe,
    pruning_recipe,
)
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.goals import CONVERSION_DROP, Goals, parse_goals
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe, uniform_recipe
from lwqc.runtime.measure import Latency, latencies
from lwqc.runtime.proof import prove
from lwqc.runtime.served import Sizes
from lwqc.runtime.session import Session
from lwqc.runtime.stats.divergence import Divergence

Data = str | os.PathLike[str] | Iterable[Mapping[str, NDArray[Any]]] | None
Shapes = Sizes | Sequence[Sizes] | None
Source = Any  # a path, an onnx_ir.Model, an onnx.ModelProto, a torch module, or a `Chainable`


def compress(
    source: Source,
    *,
    target: str | None = None,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    recipe: str | Recipe = "auto",
    max_size: str | float | None = None,
    max_latency: str | float | None = None,
    avg_bits: float | None = None,
    max_drop: float | None = None,
    max_macs: str | float | None = None,
    max_memory: str | float | None = None,
    fastest: bool = False,
    effort: Effort = "medium",
    time_limit: float | None = None,
    workers: int | None = None,
    cluster: str = "",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chainable:
    """Compress a model: the fastest within 1 % loss, or the best within a budget.

    source: path, `onnx_ir.Model`, `onnx.ModelProto`, a torch module with `example_inputs`, or what
        another function returned; the latter brings its target, data, metric and shapes along.
    target: `cpu` where neither it nor `source` says otherwise, see `lwqc extensions`.
    data: as `--data`, or an iterable of feeds (input name -> array). metric: `module:function` or
        a callable that gets `run(feeds) -> outputs` and returns a number; a callable with the
        attribute `higher_is_better = False` is a loss.
    max_size: 0.25 (of the first original) or "20MB". max_latency: 0.5 or "8ms". max_macs: 0.5 or
        "300M". max_memory: 0.5 or "200MB", of a process that loads and runs the model, beside what
        it takes without one. avg_bits: stored bits per weight. max_drop: of the metric, else of
        what the outputs lose, see `Divergence.drop`; without a budget the smallest model within
        it is made, or with `fastest` the fastest.
    effort, time_limit (seconds), workers, cluster: of the search under a budget, see
        `lwqc.decide.search.control.SearchControl`.
    shapes: sizes of dynamic dimensions that the model will serve, one set or several.
    constant_inputs: inputs with a default value, which callers may override, are constants.

    Returns the compressed model; `save` writes it, measures the file and returns the report.
    Raises InputError, in one line, for anything wrong with the arguments, model or data.
    """
    goals = parse_goals(max_size, max_latency, avg_bits, max_drop, fastest, max_macs, max_memory)
    work = _workspace(
        source, example_inputs, dynamic_shapes, target=target, data=data, metric=metric,
        shapes=shapes, constant_inputs=constant_inputs, seed=seed, progress=progress,
    )  # fmt: skip
    control = _control(effort, time_limit, workers, cluster, seed)
    return _chainable(compress_workspace(work, goals, recipe, control))


def quantize(
    source: Source,
    *,
    bits: Literal[2, 3, 4, 8] = 8,
    activations: Literal["none", "dynamic", "static"] = "none",
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse",
    method: str = "rtn",
    sequential: bool = False,
    target: str | None = None,
    data: Data = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
) -> Chainable:
    """Quantize every site alike, where the target has a kernel for it. See `compress`.

    method: see `lwqc.quant.methods`. sequential: each layer sees the quantized ones before it.
    """
    work = _workspace(
        source,
        example_inputs,
        dynamic_shapes,
        target=target,
        data=data,
        shapes=shapes,
        constant_inputs=constant_inputs,
    )
    recipe = uniform_recipe(bits, activations, ranges, True, method, sequential)
    return _chainable(compress_workspace(work, Goals(), recipe, exact=True))


def lower(
    source: Source,
    *,
    target: str | None = None,
    floats: str | None = None,
    profile: Mapping[str, tuple[int, int, int]] | None = None,
    allow_fallback: bool = False,
    max_drop: float | None = CONVERSION_DROP,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
) -> Chainable:
    """Bring a float or quantized model into the form that a target runs best. See `compress`.

    target: `cuda` where neither it nor `source` says otherwise.
    floats: `float32`, `float16` or `bfloat16`; the target's own by default. profile: least, usual
    and largest size of dynamic dimensions, for TensorRT. allow_fallback: accept nodes that run
    elsewhere; they are in `Compressed.fallbacks`. max_drop: what the conversion may cost.
    """
    work = _workspace(
        source, example_inputs, dynamic_shapes, target=_chosen(target, source, "cuda"), data=data,
        metric=metric, shapes=shapes, constant_inputs=constant_inputs,
    )  # fmt: skip
    work.allow_fallback = allow_fallback
    plan = lower_plan(work, floats=floats, profile=dict(profile or {}))
    return _chainable(execute(work, Goals(max_drop=max_drop), plan))


def prune(
    source: Source,
    *,
    ratio: float | None = None,
    recipe: str = "",
    groups: Mapping[str, float] | None = None,
    target: str | None = None,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    max_drop: float | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Chainable:
    """Remove whole channels, heads and hidden units; the others make up for them.

    With the recipes `slicegpt` and `slicegpt-shared`, residual streams get narrower instead.

    ratio: share of the multiply-accumulates that goes, or of what `by` says. recipe: one that
    prunes; `obspa` by default, `obspa-datafree` without data. groups: share by group name or
    pattern, as `inspect` lists them. options: other fields of
    `lwqc.decide.prune_options.PruneOptions` (`score`, `scope`, `by`, `round_to`, `compensate`,
    ...). The rest as in `compress`.
    """
    chosen = pruning_recipe(recipe, has_data=data is not None)
    if ratio is not None:
        options["ratio"] = ratio
    if groups is not None:
        options["overrides"] = groups
    goals = Goals(max_drop=max_drop)
    job = channel_job(chosen, goals, **options)
    work = _workspace(
        source, example_inputs, dynamic_shapes, target=target, data=data, metric=metric,
        shapes=shapes, constant_inputs=constant_inputs, progress=progress,
    )  # fmt: skip
    return _chainable(job(work).make())


def drop_layers(
    source: Source,
    *,
    branches: int | float | None = None,
    recipe: str = "",
    target: str | None = None,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    max_drop: float | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Chainable:
    """Remove whole residual branches: attention, MLP or convolution blocks.

    With the recipe `shallow`, pairs of adjacent branches are made parallel instead.

    branches: how many (an int), or a share of them (a float up to 1). recipe: one that removes
    branches; `ablation-refit` by default, `finercut` without data. options: other fields of
    `lwqc.decide.drop_layers.DropOptions` (`kind`, `score`, `measure`, `compensate`,
    `keep_signature`, ...). The rest as in `compress`.
    """
    if branches is not None:
        if "count" in options or "share" in options:
            raise InputError("branches says how many: leave out count and share")
        options["share" if isinstance(branches, float) else "count"] = branches
    goals = Goals(max_drop=max_drop)
    job = branch_job(dropping_recipe(recipe, has_data=data is not None), goals, **options)
    work = _workspace(
        source, example_inputs, dynamic_shapes, target=target, data=data, metric=metric,
        shapes=shapes, constant_inputs=constant_inputs, progress=progress,
    )  # fmt: skip
    return _chainable(job(work).make())


def plan(
    source: Source,
    *,
    target: str | None = None,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    recipe: str | Recipe = "auto",
    max_size: str | float | None = None,
    max_latency: str | float | None = None,
    avg_bits: float | None = None,
    max_drop: float | None = None,
    max_macs: str | float | None = None,
    max_memory: str | float | None = None,
    fastest: bool = False,
    effort: Effort = "medium",
    time_limit: float | None = None,
    workers: int | None = None,
    cluster: str = "",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Decide as `compress` does, by the same arguments; `apply` then gives what it would give."""
    goals = parse_goals(max_size, max_latency, avg_bits, max_drop, fastest, max_macs, max_memory)
    work = _workspace(
        source, example_inputs, dynamic_shapes, target=target, data=data, metric=metric,
        shapes=shapes, constant_inputs=constant_inputs, seed=seed, progress=progress,
    )  # fmt: skip
    return make_plan(work, goals, recipe, _control(effort, time_limit, workers, cluster, seed))


def apply(
    source: Source,
    plan: Plan,
    *,
    data: Data = None,
    metric: str | Callable[..., float] | None = None,
    shapes: Shapes = None,
    constant_inputs: bool = False,
    seed: int = 0,
    allow_drift: bool = False,
    allow_fallback: bool = False,
) -> Chainable:
    """Execute a plan on the model and data that it was made for, with the same versions.

    allow_drift: also on others; the notes tell the difference. allow_fallback: as in `lower`.
    Raises InputError with the difference, and where the plan does not fit the model.
    """
    work = _workspace(
        source, None, None, target=plan.target, data=data, metric=metric, shapes=shapes,
        constant_inputs=constant_inputs, seed=seed,
    )  # fmt: skip
    work.allow_fallback = allow_fallback
    return _chainable(apply_plan(work, plan, allow_drift=allow_drift))


def _control(
    effort: Effort, time_limit: float | None, workers: int | None, cluster: str, seed: int
) -> SearchControl:
    limit = math.inf if time_limit is None else time_limit
    return SearchControl(effort, limit, processes=workers, cluster=cluster, seed=seed)


def inspect(
    source: Source, *, shapes: Sizes | None = None, constant_inputs: bool = False
) -> Inspection:
    """Sites, skipped tensors, costs and prunable groups of a model."""
    return inspect_model(_model(source, None, None, constant_inputs), dims=shapes)


def verify(
    original: Source,
    candidate: Source,
    *,
    data: Data = None,
    shapes: Shapes = None,
) -> dict[str, Divergence]:
    """Divergence of each output of `candidate` from `original` on the same data.

    A result of another function counts as the model that it is, and brings its data along.
    """
    work = _compared((original, candidate), data, shapes)
    return work.divergence(_session(candidate, "candidate", work))


def bench(
    *models: Source,
    data: Data = None,
    shapes: Shapes = None,
    seconds: float = 2.0,
) -> list[Latency]:
    """Time models side by side at the first shape, alternating their order; data as in `verify`."""
    if not models:
        raise InputError("bench needs at least one model")
    work = _compared(models, data, shapes)
    sessions: Sequence[Session] = [_session(m, f"model {i}", work) for i, m in enumerate(models)]
    return latencies(sessions, work.served[0].feeds, seconds)


@dataclass(frozen=True)
class Chainable(Compressed):
    """A compressed model that the next step can be asked of: `prune(m).quantize(bits=4)`.

    Each method is the function of its name, with this result as the source.
    """

    compress = compress
    quantize = quantize
    prune = prune
    drop_layers = drop_layers
    lower = lower
    apply = apply
    inspect = inspect


def _chainable(done: Compressed) -> Chainable:
    return Chainable(**{f.name: getattr(done, f.name) for f in fields(done)})


def _compared(models: Sequence[Source], data: Data, shapes: Shapes) -> Workspace:
    """Work on the first of the models, with the data and shapes of the first that brings some."""
    brought = next((m.work.original for m in models if isinstance(m, Compressed)), None)
    if brought is not None:
        data = brought.data if data is None else data
        shapes = brought.shapes if shapes is None else shapes
    if isinstance(models[0], Compressed):
        return open_workspace(models[0].model, data=data, shapes=shapes)
    return _workspace(models[0], None, None, data=data, shapes=shapes)


def _session(source: Source, label: str, work: Workspace) -> Session:
    model = _model(source, None, None)
    prove(model, work.data.first(), label)
    return Session(model, label=label)


def _chosen(target: str | None, source: Source, usual: str) -> str | None:
    """The target of a step; None for that of the result that it takes."""
    return usual if target is None and not isinstance(source, Compressed) else target


def _workspace(
    source: Source, example_inputs: Any, dynamic_shapes: Any, **options: Any
) -> Workspace:
    if isinstance(source, Compressed):
        options.pop("constant_inputs", None)  # of files: this one was read
        return after(source, **options)
    options["target"] = options.get("target") or "cpu"
    if isinstance(source, (str, os.PathLike)):
        return open_workspace(source, **options)
    constant = options.pop("constant_inputs", False)
    return open_workspace(_model(source, example_inputs, dynamic_shapes, constant), **options)


def _model(
    source: Source, example_inputs: Any, dynamic_shapes: Any, constant_inputs: bool = False
) -> ir.Model:
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, Compressed):
        return source.model
    if isinstance(source, (str, os.PathLike)):
        return io.load(source, constant_inputs=constant_inputs)
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(source).__mro__}
    if any(k.endswith(".ModelProto") for k in kinds):
        return io.from_proto(source, constant_inputs=constant_inputs)
    if "torch.nn.modules.module.Module" in kinds:
        if example_inputs is None:
            raise InputError("a torch module needs example_inputs")
        from lwqc.frontends.torch import export

        return export(source, example_inputs, dynamic_shapes=dynamic_shapes)
    raise InputError(
        f"a {type(source).__name__} is no model; expected a path, an ONNX model, a torch module or "
        "what a function of lwqc returned"
    )
