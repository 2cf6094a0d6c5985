"""The Python API; the command line is a thin layer over the same functions.

Whatever takes a model takes what another function made of one, as its first argument or by the
method of the same name: `lwqc.prune(m, data=d).quantize(bits=4).lower(target="cuda")`. Target,
data, metric and shapes travel along unless they are given anew. Budgets are parts of the first
original, and losses, times and sizes are measured against it; channels, branches and sites are
those of the model that the step was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast

import onnx_ir as ir

from lwqc.compile.compared_in_parts import divergences_in_parts
from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import apply_plan, execute
from lwqc.compile.losses import check_classes, divergences
from lwqc.compile.replayed import replayed
from lwqc.compile.version import Version
from lwqc.decide.compress import compress_version, make_plan, open_version
from lwqc.decide.continued import after
from lwqc.decide.explain.inspection import Inspection, inspect_model
from lwqc.decide.lower import lower_plan
from lwqc.decide.search.control import SearchControl, search_control
from lwqc.decide.structural import (
    branch_amount,
    branch_job,
    channel_job,
    dropping_recipe,
    pruning_recipe,
)
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.model.notebook import NotebookLine, notebook_line
from lwqc.plans.goals import CONVERSION_DROP, Goals
from lwqc.plans.options import (
    Bounded,
    Budgets,
    Compressing,
    Data,
    Dropping,
    DroppingSources,
    Encoding,
    JobOptions,
    Loss,
    Opening,
    Preparation,
    Pruning,
    PruningSources,
    Quantizing,
    Reading,
    Recovering,
    RecoveringSources,
    Shapes,
    Sizes,
    Sources,
    Spread,
)
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe, as_asked, find, uniform_recipe, with_embedding_rank
from lwqc.plans.spelled_out import part, spelled_out
from lwqc.runtime.measure import Latency, latencies
from lwqc.runtime.proof import prove
from lwqc.runtime.session import Session
from lwqc.runtime.stats.divergence import Divergence

if TYPE_CHECKING:
    from lwqc.compile.recovered import Recovered
    from lwqc.compile.vocabulary import SmallerVocabulary
    from lwqc.learn.module import OnnxModule
    from lwqc.learn.to_torch import Trainable

Called = TypeVar("Called", bound=Callable[..., Any])
Source = Any  # a path, an onnx_ir.Model, an onnx.ModelProto, what `convert` takes, a `Chainable`


def _shown_in_notebooks(function: Called) -> Called:
    """A function that shows a line in a notebook, where no progress is asked for otherwise."""

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        given = options.pop("progress", None)
        if given is None and args and isinstance(args[0], Compressed):
            given = args[0].work.original.job.progress
        if given is False or not (given is None or isinstance(given, NotebookLine)):
            return function(*args, progress=given or None, **options)
        with notebook_line() as line:
            return function(*args, progress=line, **options)

    return cast(Called, called)


@spelled_out(Compressing)
@_shown_in_notebooks
def compress(
    source: Source, *, recipe: str | Recipe = "auto", **options: Unpack[Compressing]
) -> Chainable:
    """Compress a model: the fastest within 1 % loss, or the best within a budget.

    source: `onnx_ir.Model`, `onnx.ModelProto`, path of an ONNX file; what `lwqc convert` takes, as
        `net.keras`, `net.pt2`, a SavedModel or `module:callable`; a torch module with
        `example_inputs`, a model of Keras, scikit-learn, LightGBM or XGBoost; or what another
        function returned, which brings its target, data, metric and shapes along. The target is
        `cpu` where neither it nor an option says otherwise.
    options: see `lwqc.plans.options`: `Sources` for what the model is opened with, `Budgets` for
        what the result may cost, `Searching` for the search under a budget.

    Returns the compressed model; `save` writes it, measures the file and returns the report.
    Raises InputError, in one line, for anything wrong with the arguments, model or data.
    """
    goals = Goals(**part(Budgets, options))
    chosen = _recipe(recipe, options)
    work = _opened(source, part(Encoding, options))
    return _chainable(compress_version(work, goals, chosen, _control(options)))


@spelled_out(Quantizing)
@_shown_in_notebooks
def quantize(
    source: Source,
    *,
    bits: Literal[2, 3, 4, 8] = 8,
    activations: Literal["none", "dynamic", "static"] = "none",
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse",
    method: str = "rtn",
    sequential: bool = False,
    format: str | None = None,
    **options: Unpack[Quantizing],
) -> Chainable:
    """Quantize every site alike, where the target has a kernel for it. See `compress`.

    method: see `lwqc.quant.methods`. sequential: each layer sees the quantized ones before it.
    format: instead of the bits, by its name, see `lwqc.quant.formats`.
    """
    work = _opened(source, part(Encoding, options))
    plain = uniform_recipe(bits, activations, ranges, True, method, sequential, format)
    recipe = with_embedding_rank(plain, options.get("embedding_rank"))
    return _chainable(compress_version(work, Goals(), recipe, exact=True))


@spelled_out(Bounded)
@_shown_in_notebooks
def lower(
    source: Source,
    *,
    floats: str | None = None,
    profile: Mapping[str, tuple[int, int, int]] | None = None,
    allow_fallback: bool = False,
    **options: Unpack[Bounded],
) -> Chainable:
    """Bring a float or quantized model into the form that a target runs best. See `compress`.

    The target is `cuda` where neither `source` nor an option says otherwise.
    floats: `float32`, `float16` or `bfloat16`; the target's own by default. profile: least, usual
    and largest size of dynamic dimensions, for TensorRT. allow_fallback: accept nodes that run
    elsewhere; they are in `Compressed.fallbacks`. max_drop: what the conversion may cost, 0.01
    where nothing is said.
    """
    opening = part(Sources, options)
    if opening.get("target") is None and not isinstance(source, Compressed):
        opening["target"] = "cuda"
    work = _opened(source, opening, allow_fallback)
    plan = lower_plan(work, floats=floats, profile=dict(profile or {}))
    wanted: Loss = {"max_drop": CONVERSION_DROP, **part(Loss, options)}
    goals = Goals(**wanted)
    check_classes(work, goals)
    return _chainable(execute(work, goals, plan))


@spelled_out(PruningSources)
@_shown_in_notebooks
def prune(source: Source, *, recipe: str = "", **options: Unpack[PruningSources]) -> Chainable:
    """Remove whole channels, heads and hidden units; the others make up for them.

    With the recipes `slicegpt` and `slicegpt-shared`, residual streams get narrower instead.

    recipe: one that prunes; `obspa` by default, `obspa-datafree` without data.
    ratio: share of the multiply-accumulates that goes, or of what `by` says. groups: share by
    group name or pattern, as `inspect` lists them. Other options are fields of
    `lwqc.decide.prune_options.PruneOptions`, or as in `compress`.
    """
    chosen = pruning_recipe(recipe, has_data=options.get("data") is not None)
    goals = Goals(**part(Loss, options))
    job = channel_job(chosen, goals, **part(Pruning, options))
    return _chainable(job(_opened(source, part(Sources, options))).make())


@spelled_out(DroppingSources)
@_shown_in_notebooks
def drop_layers(
    source: Source,
    *,
    branches: int | float | str | None = None,
    recipe: str = "",
    **options: Unpack[DroppingSources],
) -> Chainable:
    """Remove whole residual branches: attention, MLP or convolution blocks.

    With the recipe `shallow`, pairs of adjacent branches are made parallel instead.

    branches: how many (an int), or a share of them (a float up to 1, or "25%"). recipe: one that
    removes branches; `ablation-refit` by default, `finercut` without data. Other options are fields
    of `lwqc.decide.drop_layers.DropOptions`, or as in `compress`.
    """
    changes: dict[str, Any] = {**part(Dropping, options)}
    if branches is not None:
        if "count" in options or "share" in options:
            raise InputError("branches says how many: leave out count and share")
        changes |= branch_amount(branches)
    if "seed" in options:
        changes["seed"] = options["seed"]
    goals = Goals(**part(Loss, options))
    only_tokens = options.get("tokens") is not None and branches is None
    has_data = options.get("data") is not None
    chosen = dropping_recipe(recipe, has_data=has_data, tokens=only_tokens)
    job = branch_job(chosen, goals, **changes)
    return _chainable(job(_opened(source, part(Sources, options))).make())


@spelled_out(Compressing)
@_shown_in_notebooks
def plan(source: Source, *, recipe: str | Recipe = "auto", **options: Unpack[Compressing]) -> Plan:
    """Decide as `compress` does, by the same arguments; `apply` then gives what it would give."""
    goals = Goals(**part(Budgets, options))
    chosen = _recipe(recipe, options)
    work = _opened(source, part(Encoding, options))
    return make_plan(work, goals, chosen, _control(options))


def _recipe(recipe: str | Recipe, options: Compressing) -> Recipe:
    found = find(recipe) if isinstance(recipe, str) else recipe
    return as_asked(found, options)


@spelled_out(Encoding)
@_shown_in_notebooks
def apply(
    source: Source,
    plan: Plan | str | os.PathLike[str],
    *,
    allow_drift: bool = False,
    allow_fallback: bool = False,
    **options: Unpack[Encoding],
) -> Chainable:
    """Execute a plan on the model and data that it was made for, with the same versions.

    plan: also the path of its file. Data is prepared as it was for the plan, unless `preprocess`
    says how. allow_drift: also on others; the notes tell the difference. allow_fallback: as in
    `lower`. Raises InputError with the difference, where the plan does not fit the model, for a
    file that is no plan, and for another target than the plan's.
    """
    if isinstance(plan, str | os.PathLike):
        plan = Plan.load(plan)
    elif not isinstance(plan, Plan):
        raise InputError(f"plan: expected a Plan or the path of one, not {type(plan).__name__}")
    if options.get("target") not in (None, plan.target):
        raise InputError(f"target {options['target']}: the plan is for {plan.target}")
    opening: Encoding = {**options, "target": plan.target}
    if (how := replayed(plan, options.get("data"), options.get("preprocess"))) is not None:
        opening["preprocess"] = how
    work = _opened(source, opening, allow_fallback)
    return _chainable(apply_plan(work, plan, allow_drift=allow_drift))


def _control(options: Compressing) -> SearchControl:
    return search_control(options, options.get("seed", 0))


@spelled_out(Reading)
def inspect(
    source: Source, *, shapes: Sizes | None = None, **options: Unpack[Reading]
) -> Inspection:
    """Sites, skipped tensors, costs and prunable groups of a model. See `compress`."""
    return inspect_model(_model(source, **options), dims=shapes)


def verify(
    original: Source,
    candidate: Source,
    *,
    data: Data = None,
    shapes: Shapes = None,
    preprocess: Preparation = None,
    memory: str | int | None = None,
) -> dict[str, Divergence]:
    """Divergence of each output of `candidate` from `original` on the same data.

    A result of another function counts as the model that it is, and brings its data along. memory:
    what the work may take, as "8GB"; both models are then run in parts.
    """
    work = _compared((original, candidate), data, shapes, preprocess, memory)
    if work.job.room is not None:
        return divergences_in_parts(work, _model(candidate))
    return divergences(work, _session(candidate, "candidate", work))


def bench(
    *models: Source,
    data: Data = None,
    shapes: Shapes = None,
    seconds: float = 2.0,
    preprocess: Preparation = None,
) -> list[Latency]:
    """Time models side by side at the first shape, alternating their order; data as in `verify`."""
    if not models:
        raise InputError("bench needs at least one model")
    work = _compared(models, data, shapes, preprocess)
    sessions: Sequence[Session] = [_session(m, f"model {i}", work) for i, m in enumerate(models)]
    return latencies(sessions, work.job.data.serve[0].feeds, seconds)


def to_torch(
    source: Source,
    *,
    trainable: Trainable = "weights",
    codes: bool = False,
    batch_statistics: bool = False,
) -> OnnxModule:
    """A model as a torch module with gradients: its inputs by name give its outputs by name.

    trainable: `weights`, see `lwqc.learn.weights`; `all` stored floats; `none`; names of stored
    tensors; or a function that is asked for each name. codes: codes of weights are trained too,
    rounded in every run. batch_statistics: in `train()` BatchNormalization goes by the statistics
    of each batch, which move those of the file. `write_back` stores what was trained.

    Raises InputError without torch, and for operators that it knows no function of.
    """
    require_torch()
    from lwqc.learn.to_torch import module_of

    return module_of(_model(source), trainable, codes=codes, batch_statistics=batch_statistics)


def write_back(module: OnnxModule, source: Source) -> ir.Model:
    """A copy of the model with the numbers of a module of `to_torch`; all else is as it was.

    Raises InputError where the model does not store such tensors.
    """
    from lwqc.learn import to_torch

    return to_torch.write_back(module, _model(source))


@spelled_out(RecoveringSources)
@_shown_in_notebooks
def recover(
    small: Source, *, teacher: Source = None, **options: Unpack[RecoveringSources]
) -> Recovered:
    """Fit a small model to the outputs of the one that it was made of, by gradients.

    teacher: needed, unless `small` is a result of another function: then its first original. data:
    as elsewhere; one of five feeds is held back, and the result is what is best on those: the model
    as it was where nothing is. options: see `lwqc.plans.options.Recovering`.

    Returns the fitted model, its report, and `save`. Raises InputError without torch, for operators
    without known gradients, and for anything wrong with the arguments.
    """
    from lwqc.compile.recover import recover as fitted

    if isinstance(small, Compressed):
        original = small.work.original
        teacher = original.model if teacher is None else teacher
        if options.get("data") is None:
            options["data"] = original.job.data.fit
    if teacher is None:
        raise InputError("recover needs a teacher: the model that the small one was made of")
    own, taught = (_model(s, **part(Reading, options)) for s in (small, teacher))
    names = (_name(small, "model"), _name(teacher, "teacher"))
    progress = options.get("progress") or None
    return fitted(own, taught, part(Recovering, options), names=names, progress=progress)


def prune_vocabulary(
    source: Source,
    *,
    data: Data = None,
    preprocess: Preparation = None,
    keep: Sequence[int] = (),
    unknown: int | None = None,
    ids: str | None = None,
    heads: Sequence[str] = (),
) -> SmallerVocabulary:
    """A model without the token ids that neither the data nor `keep` has.

    It changes what inputs mean: `map[old ids]` of the result are the new ones, and outputs over ids
    are those of `kept`. Whatever has only kept ids gives the same outputs, see
    `lwqc.compile.vocabulary`.

    data, preprocess: texts as elsewhere, all of which are looked at. unknown: an id that all that
    are gone become. ids: the input that holds them, by default that of the largest table.
    heads: outputs over the same ids that share no table with them.

    Returns the model, `kept`, `map`, a report, and `save`. Raises InputError where no input is
    known to be ids and nothing else.
    """
    from lwqc.compile.vocabulary import smaller_vocabulary
    from lwqc.runtime.data import open_data

    model, label = _model(source), _name(source, "model")
    if data is None and not keep:
        raise InputError("which ids stay is told by data, keep or both")
    opened = None if data is None else open_data(data, model, preprocess=preprocess)
    return smaller_vocabulary(
        model, data=opened, keep=keep, unknown=unknown, ids=ids, heads=heads, label=label
    )


def _name(source: Source, usual: str) -> str:
    """For messages and reports."""
    return Path(source).name if isinstance(source, (str, os.PathLike)) else usual


@dataclass(frozen=True, repr=False)
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


def _compared(
    models: Sequence[Source],
    data: Data,
    shapes: Shapes,
    preprocess: Preparation,
    memory: str | int | None = None,
) -> Version:
    """Work on the first of the models, with the data and shapes of the first that brings some."""
    brought = next((m.work.original for m in models if isinstance(m, Compressed)), None)
    if brought is not None:
        data = brought.job.data.fit if data is None else data
        shapes = brought.job.data.shapes if shapes is None else shapes
    opening: Sources = {"data": data, "shapes": shapes, "preprocess": preprocess, "memory": memory}
    if isinstance(models[0], Compressed):
        return open_version(models[0].model, **part(Opening, opening))
    return _opened(models[0], opening)


def _session(source: Source, label: str, work: Version) -> Session:
    model = _model(source)
    prove(model, work.job.data.fit.first(), label)
    return Session(model, label=label)


def _opened(source: Source, options: Encoding | Sources, allow_fallback: bool = False) -> Version:
    progress = options.get("progress") or None
    cluster = part(Spread, options).get("cluster", "")
    if isinstance(source, Compressed):
        kept = part(JobOptions, options)
        return after(
            source, **kept, allow_fallback=allow_fallback, cluster=cluster, progress=progress
        )
    model = _model(source, **part(Reading, options))
    opening = part(Opening, options)
    return open_version(
        model,
        name=_name(source, "model"),
        allow_fallback=allow_fallback,
        cluster=cluster,
        progress=progress,
        **opening,
    )


def _model(source: Source, **reading: Unpack[Reading]) -> ir.Model:
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, Compressed):
        return source.model
    from lwqc.frontends.convert import read_model

    return read_model(source, **reading)
