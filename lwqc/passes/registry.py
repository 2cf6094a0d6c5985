"""The passes that a text can name: ours, and those of installed packages by entry point."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

import onnx_ir as ir
from pydantic import TypeAdapter, ValidationError

from lwqc.errors import InputError
from lwqc.model.user_code import load_point, package_of, running_package
from lwqc.passes.base import kebab, name_of
from lwqc.passes.pipeline_text import Item, Option

GROUP = "lwqc.passes"
_HERE = "lwqc.passes"
# Name -> module and class. Imported when first asked for.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "constant-reshape": f"{_HERE}.constant_reshape:ConstantReshape",
        "convert-floats": f"{_HERE}.convert_floats:ConvertFloats",
        "decided-where": f"{_HERE}.decided_where:DecidedWhere",
        "expand-integers": f"{_HERE}.expand_integers:ExpandIntegers",
        "flat-product": f"{_HERE}.flat_product:FlatProduct",
        "flat-transpose": f"{_HERE}.flat_transpose:FlatTranspose",
        "fold-affine": f"{_HERE}.fold_affine:FoldAffine",
        "fold-constants": f"{_HERE}.fold_constants:FoldConstants",
        "fold-norms": f"{_HERE}.fold_norms:FoldNorms",
        "fuse-activations": f"{_HERE}.fuse_activations:FuseActivations",
        "fuse-attention": f"{_HERE}.fuse_attention:FuseAttention",
        "fuse-gelu": f"{_HERE}.fuse_gelu:FuseGelu",
        "fuse-layer-norm": f"{_HERE}.fuse_layer_norm:FuseLayerNorm",
        "fuse-rms-norm": f"{_HERE}.fuse_rms_norm:FuseRmsNorm",
        "fuse-rotary": f"{_HERE}.fuse_rotary:FuseRotary",
        "global-pool": f"{_HERE}.global_pool:GlobalPool",
        "grouped-experts": f"{_HERE}.grouped_experts:GroupedExperts",
        "graphsurgeon": f"{_HERE}.graphsurgeon:Graphsurgeon",
        "identity-gather": f"{_HERE}.identity_gather:IdentityGather",
        "integer-bias": f"{_HERE}.integer_bias:IntegerBias",
        "join-equal": f"{_HERE}.join_equal:JoinEqual",
        "kept-axes": f"{_HERE}.kept_axes:KeptAxes",
        "late-broadcast": f"{_HERE}.late_broadcast:LateBroadcast",
        "loop-invariants": f"{_HERE}.loop_invariants:LoopInvariants",
        "merge-parallel": f"{_HERE}.merge_parallel:MergeParallel",
        "nan-guards": f"{_HERE}.drop_nan_guards:DropNanGuards",
        "one-hot-gather": f"{_HERE}.one_hot_gather:OneHotGather",
        "parallel-branches": f"{_HERE}.by_name:ParallelNamedBranches",
        "plain-einsum": f"{_HERE}.plain_einsum:PlainEinsum",
        "plain-gemm": f"{_HERE}.plain_gemm:PlainGemm",
        "plain-linear": f"{_HERE}.plain_linear:PlainLinear",
        "raise-opset": f"{_HERE}.raise_opset:RaiseOpset",
        "remove-branches": f"{_HERE}.by_name:RemoveNamedBranches",
        "remove-unused": "lwqc.model.unused:RemoveUnused",
        "residual-sum": f"{_HERE}.residual_sum:ResidualSum",
        "restore-floats": f"{_HERE}.by_name:RestoreAllFloats",
        "sizes-on-device": f"{_HERE}.sizes_on_device:SizesOnDevice",
        "stft-conv": f"{_HERE}.stft_conv:StftConv",
        "strided-reshape": f"{_HERE}.strided_reshape:StridedReshape",
        "widen-bfloat16": f"{_HERE}.widen_bfloat16:WidenBfloat16",
        "widen-floats": f"{_HERE}.widen_floats:WidenFloats",
    }
)
PassClass = type[ir.passes.PassBase]
_FOREIGN: dict[PassClass, str] = {}  # classes of other packages that were found, as messages say


@cache
def from_packages() -> Mapping[str, EntryPoint]:
    """Passes that other installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """All names that a text can hold but those of pipelines, sorted."""
    return sorted({*BUILT_IN, *from_packages()})


def find(name: str) -> PassClass:
    """The class of a pass. Raises InputError for names that are not known, and for broken packages.

    A name of ours cannot be taken by another package.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: PassClass = getattr(importlib.import_module(module), attribute)
        return found
    point = from_packages().get(name)
    if point is None:
        raise unknown("pass", name, names())
    loaded: object = load_point(point, f"pass {name}: {point.value}")
    if not isinstance(loaded, type) or not issubclass(loaded, ir.passes.PassBase):
        raise InputError(f"pass {name}: {point.value} is no class of passes of onnx_ir")
    _FOREIGN[loaded] = f"pass {name} (of {package_of(point)})"
    return loaded


def running(step: PassClass) -> AbstractContextManager[None]:
    """Around what a pass does, where a package brought it and a text named it.

    Raises UserCodeError for what it raises. Passes that the caller made are the caller's to debug.
    """
    told = _FOREIGN.get(step)
    return nullcontext() if told is None else running_package(lambda: told)


def unknown(kind: str, name: str, known: list[str]) -> InputError:
    """The error for a name that is not known, with those that are near."""
    near = difflib.get_close_matches(name, known, 3, 0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `lwqc passes`"
    return InputError(f"no {kind} is called {name!r}; {hint}")


def options_of(step: PassClass) -> dict[str, dataclasses.Field[object]]:
    """The options of a pass, as a text writes them."""
    if not dataclasses.is_dataclass(step) or getattr(step, "planned", False):
        return {}
    return {kebab(f.name): f for f in dataclasses.fields(step) if f.init}


@cache
def _hints(step: PassClass) -> dict[str, object]:
    """The types of the options of a pass."""
    return typing.get_type_hints(step)


def make(item: Item) -> ir.passes.PassBase:
    """The pass that an item of a text asks for. Raises InputError."""
    step = find(item.name)
    fields = options_of(step)
    values: dict[str, object] = {}
    with running(step):
        hints = _hints(step)
    for key, given in item.options.items():
        if key not in fields:
            raise unknown(f"option of {item.name}", key, list(fields))
        name = fields[key].name
        values[name] = _read(item.name, key, given, hints[name])
    missing = [key for key, f in fields.items() if _required(f) and f.name not in values]
    if missing:
        raise InputError(f"{item.name}: {', '.join(missing)} must be given: {item.name}{{...}}")
    if inspect.isabstract(step):
        raise InputError(f"{item.name}: {step.__name__} does not say how it rewrites")
    with running(step):
        return step(**values)


def item_of(step: ir.passes.PassBase) -> Item:
    """The item that `make` reads as this pass; options that have their default are left out."""
    options: dict[str, Option] = {}
    for key, field in options_of(type(step)).items():
        value = getattr(step, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            options[key] = _text(value)
    return Item(name_of(step), options)


def _required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read(step: str, key: str, given: Option, wanted: typing.Any) -> object:
    several = typing.get_origin(wanted) in (tuple, frozenset)
    value = given if not several else (given,) if isinstance(given, str) else given
    try:
        return TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        text = given if isinstance(given, str) else ",".join(given)
        reason = error.errors()[0]["msg"]
        raise InputError(f"{step}: {key}={text}: {reason}") from error


def _text(value: object) -> Option:
    if isinstance(value, tuple):
        return tuple(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
