"""The file of options of the runtime beside a model for TensorRT or OpenVINO."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.model.documents import parse_json, read_text
from lwqc.plans.plan import Plan

SUFFIX = ".options.json"
_KNOWN = re.compile(
    "trt_((fp16|bf16|int8|sparsity|engine_cache|timing_cache)_enable|layer_norm_fp32_fallback"
    "|engine_cache_(path|prefix)|timing_cache_path|profile_(min|opt|max)_shapes)"
    "|INFERENCE_PRECISION_HINT|DYNAMIC_QUANTIZATION_GROUP_SIZE"
)


def tensorrt_options(model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
    """Options for the TensorRT provider: types, caches, profiles, sparsity.

    stem: prefix of the cache files. Floats of 16 bits are written in the graph; the flags only
    allow kernels of these types.
    """
    half = plan.floats is not None and plan.floats.dtype == "float16"
    brain = plan.floats is not None and plan.floats.dtype == "bfloat16"
    quantized = any(n.op_type == "QuantizeLinear" for n in model.graph.all_nodes())
    options = {
        "trt_fp16_enable": str(int(half)),
        "trt_bf16_enable": str(int(brain)),
        "trt_int8_enable": str(int(quantized)),
        "trt_layer_norm_fp32_fallback": str(int(half)),
        "trt_sparsity_enable": str(int(bool(plan.sparse))),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{stem}.engines",
        "trt_engine_cache_prefix": stem,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": f"{stem}.engines",
    }
    names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
    return options | profile_options(model, plan, names)


def profile_options(model: ir.Model, plan: Plan, names: tuple[str, str, str]) -> dict[str, str]:
    """Least, usual and largest shapes of inputs, under these names."""
    options = {}
    for i, name in enumerate(names):
        shapes = _shapes(model, {n: sizes[i] for n, sizes in plan.profile.items()})
        if shapes:
            options[name] = shapes
    return options


def _checked(source: Path, name: str, value: str) -> str:
    """The value of an option that lwqc itself writes; of others some load libraries."""
    if not _KNOWN.fullmatch(name):
        raise InputError(f"{source}: option {name[:60]!r} is none that lwqc writes: remove it")
    if name.endswith("_path") and Path(value).name != value:
        raise InputError(f"{source}: option {name}: {value[:60]!r} is not a plain name")
    return value


def _shapes(model: ir.Model, sizes: Mapping[str, int]) -> str:
    """`input:1x16,other:1x16` for the inputs that have dynamic dimensions."""
    parts = []
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None or value.shape.is_static():
            continue
        dims = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            name = str(dim.value) if dim.value else f"{value.name}:{axis}"
            if name not in sizes:
                return ""  # profiles are for all dynamic inputs or for none
            dims.append(sizes[name])
        parts.append(f"{value.name}:{'x'.join(map(str, dims))}")
    return ",".join(parts)


def options_path(path: Path) -> Path:
    """Where the options of a model are."""
    return path.with_name(path.name + SUFFIX)


def options_text(provider: str, options: Mapping[str, str]) -> str:
    """What the file of options holds."""
    return json.dumps({"provider": provider, "options": dict(options)}, indent=1)


def read_options(path: Path, provider: str) -> dict[str, str]:
    """Options beside a model, for this provider; none where there is no file. Raises InputError."""
    source = options_path(path)
    if not source.exists():
        return {}
    try:
        document: Any = parse_json(read_text(source))
        if document["provider"] != provider:
            return {}
        return {str(k): _checked(source, str(k), str(v)) for k, v in document["options"].items()}
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source}: not a file of provider options: {error!r}") from error
