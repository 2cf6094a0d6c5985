"""LightGBM's and XGBoost's models to ONNX by onnxmltools; extra `lwqc[boosting]`.

They become one operator on trees, which holds nothing to quantize.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.needed import needed

_EXTRA = "boosting"
_INPUT = "x"


def of_lightgbm(model: Any) -> ir.Model:
    """A fitted `Booster` or `LGBMModel`. Raises InputError."""
    return _export("lightgbm", model, int(_booster(model).num_feature()), zipmap=False)


def of_xgboost(model: Any) -> ir.Model:
    """A fitted `Booster` or `XGBModel`. Raises InputError."""
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    return _export("xgboost", model, int(booster.num_features()))


def load_lightgbm(path: Path) -> ir.Model:
    """A model as text, `booster.save_model("model.txt")`."""
    package = needed("lightgbm", "LightGBM's models", _EXTRA)
    with converting(f"{path}: loading it"):
        booster = package.Booster(model_file=str(path))
    return of_lightgbm(booster)


def load_xgboost(path: Path) -> ir.Model:
    """A model as JSON or UBJ, `booster.save_model("model.json")`."""
    package = needed("xgboost", "XGBoost's models", _EXTRA)
    booster = package.Booster()
    with converting(f"{path}: loading it"):
        booster.load_model(str(path))
    return of_xgboost(booster)


def _booster(model: Any) -> Any:
    return getattr(model, "booster_", model)


def _export(kind: str, model: Any, columns: int, **options: Any) -> ir.Model:
    tools = needed("onnxmltools", "models of trees", _EXTRA)
    types = needed("onnxmltools.convert.common.data_types", "models of trees", _EXTRA)
    rows = [(_INPUT, types.FloatTensorType([None, columns]))]
    with converting(f"{type(model).__name__}: conversion"):
        proto = getattr(tools, f"convert_{kind}")(model, initial_types=rows, **options)
    return io.from_proto(proto)
