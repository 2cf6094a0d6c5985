"""The main job: find a plan that meets the goals and execute it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from lwqc.backends.make_target import make_target
from lwqc.compile.compressed import Compressed
from lwqc.compile.job import Job
from lwqc.compile.job_data import JobData
from lwqc.compile.reference import Reference
from lwqc.compile.version import Version
from lwqc.decide.budgets import register_all
from lwqc.decide.caching import checked_cache
from lwqc.decide.output_weights import checked_weights
from lwqc.decide.search.control import SearchControl
from lwqc.decide.strategy import decide
from lwqc.decide.true_outputs import with_true_outputs
from lwqc.errors import InputError, LwqcError
from lwqc.graph.float_slots import result_types
from lwqc.graph.value_types import infer_types, with_own_sizes
from lwqc.model import io
from lwqc.model.metadata import bare
from lwqc.passes.one_view import one_view
from lwqc.plans.goals import Goals
from lwqc.plans.option_texts import parse_memory
from lwqc.plans.options import Opening, Progress, Sizes
from lwqc.plans.plan import Plan
from lwqc.plans.recipe import Recipe
from lwqc.runtime.data import Dataset, SizesDifferError, open_data
from lwqc.runtime.legal_sizes import legal_sizes
from lwqc.runtime.metrics.named import metric_of
from lwqc.runtime.parts import Room
from lwqc.runtime.proof import original, prove, prove_first
from lwqc.runtime.served import as_sequence
from lwqc.runtime.session import Session, tensor_types

_WEIGHT = 16  # numbers in a Constant node that count as a weight, as Paddle2ONNX writes them


def open_version(
    source: ir.Model | str | os.PathLike[str],
    *,
    name: str | None = None,
    skip_checks: bool = False,
    allow_fallback: bool = False,
    cluster: str = "",
    progress: Progress | None = None,
    **opening: Unpack[Opening],
) -> Version:
    """Load a model with everything a search needs. Raises InputError.

    skip_checks, allow_fallback, cluster: see `lwqc.compile.job.Job`. opening: the target is `cpu`
    where none is named; the first of several shapes is that of the data too.
    """
    register_all()
    target = make_target(opening.get("target") or "cpu")
    constant = opening.get("constant_inputs", False)
    loaded = source if isinstance(source, ir.Model) else io.load(source, constant_inputs=constant)
    if not opening.get("keep_metadata", False):
        loaded = bare(loaded)
    model = explicit(one_view(loaded))
    if name is None:
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else "model"
    asked = as_sequence(opening.get("shapes"))
    sizes = asked[0] if asked else None
    room = None if (most := opening.get("memory")) is None else Room(parse_memory(most))
    if room is not None and opening.get("metric") is not None:
        raise InputError("--memory works on a model in parts: leave out --metric")
    whole = room is None or room.holds(model)
    model, dataset = _with_data(model, opening, sizes, whole)
    if room is None:  # otherwise part by part
        prove_first(model, dataset.first, name)
    job = Job(
        target,
        JobData(dataset, model, asked),
        metric_of(opening.get("metric"), model, dataset),
        skip_checks=skip_checks,
        allow_fallback=allow_fallback,
        kv_cache=checked_cache(opening.get("kv_cache"), target, dataset),
        progress=progress,
        room=room,
        cluster=cluster,
        weights=checked_weights(opening.get("weight_outputs"), model, opening.get("metric")),
    )
    if asked:
        job.data.serve  # noqa: B018  # unknown dimensions show before any work starts
    return with_true_outputs(Version(model, job, Reference(model, name, job)))


def _with_data(
    model: ir.Model, opening: Opening, shapes: Sizes | None, whole: bool
) -> tuple[ir.Model, Dataset]:
    """The data, and the model without names of sizes that the data contradicts.

    whole: the model may be run to find out. The runtime does not compare sizes of one name: a file
    may call different ones the same. Raises InputError where the model does not run with them.
    """
    spec: Any = opening.get("data")
    seed, preprocess = opening.get("seed", 0), opening.get("preprocess")
    if isinstance(spec, Iterator):
        spec = list(spec)  # it may be read again
    if spec is None or (isinstance(spec, str) and spec.partition(":")[0] == "random"):
        found = legal_sizes(model, shapes or {}) if whole else dict(shapes or {})
        dataset = open_data(spec, model, seed=seed, shapes=found, preprocess=preprocess)
        return model, replace(dataset, description=_with_sizes(dataset.description, found, shapes))
    while True:
        try:
            return model, open_data(spec, model, seed=seed, shapes=shapes, preprocess=preprocess)
        except SizesDifferError as error:
            if not whole:
                raise
            try:
                prove(model, error.feeds, "model")
                Session(original(model))(error.feeds)
            except LwqcError:
                raise error from None
            model = with_own_sizes(model, error.symbol)


def _with_sizes(description: str, found: Sizes, asked: Sizes | None) -> str:
    """What random data is, with the sizes that were found by trying."""
    own = ", ".join(f"{name}={size}" for name, size in found.items() if name not in (asked or {}))
    return f"{description} with {own}" if own else description


def explicit(model: ir.Model) -> ir.Model:
    """The model, or a copy with inferred types, and weights of Constant nodes as initializers."""
    nodes = list(model.graph.all_nodes())
    typed = all(v.type is not None for node in model.graph for v in node.outputs if v.name)
    if typed and not any(n.op_type == "Constant" and n.domain == "" for n in nodes):
        return model
    copy = model.clone()
    copy.meta.update(model.meta)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=_WEIGHT)(copy)
    if not typed:
        infer_types(copy)
        _state_runtime_types(copy)
    return copy


def _state_runtime_types(model: ir.Model) -> None:
    """Types of results of the runtime's own operators, in place."""
    for node in model.graph.all_nodes():
        found = result_types(node, int(model.opset_imports.get(node.domain, 1)))
        for index, dtype in found.items():
            node.outputs[index].type = ir.TensorType(dtype)
    left = {v.name: v for node in model.graph for v in node.outputs if v.name and v.type is None}
    for name, dtype in (tensor_types(model, list(left)) if left else {}).items():
        left[name].type = ir.TensorType(dtype)


def make_plan(
    work: Version,
    goals: Goals,
    recipe: Recipe | str = "auto",
    control: SearchControl | None = None,
) -> Plan:
    """What `compress_version` would do, without writing anything. Raises InputError."""
    return decide(work, goals, recipe, control).stamped


def compress_version(
    work: Version,
    goals: Goals,
    recipe: Recipe | str = "auto",
    control: SearchControl | None = None,
    *,
    exact: bool = False,
) -> Compressed:
    """Find a plan and execute it, see `lwqc.decide.strategy.decide`. Raises InputError."""
    return decide(work, goals, recipe, control, exact=exact).make()
