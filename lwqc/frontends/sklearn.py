"""scikit-learn estimators and pipelines to ONNX by skl2onnx; extra `lwqc[sklearn]`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.needed import needed


def export(estimator: Any, examples: Any = None) -> ir.Model:
    """A fitted estimator. Probabilities are one tensor, [batch, classes].

    examples: rows as it was fitted on, an array or a data frame; a data frame gives one input for
    each column. None: rows of `n_features_in_` float32. Raises InputError.
    """
    converter = needed("skl2onnx", "scikit-learn's models", "sklearn")
    name = type(estimator).__name__
    if examples is None:
        count = getattr(estimator, "n_features_in_", None)
        if count is None:
            raise InputError(f"{name}: does not say how many columns it takes: give example rows")
        examples = np.zeros((1, count), np.float32)
    examples = examples[:1]
    if isinstance(examples, np.ndarray) and examples.dtype == np.float64:
        examples = examples.astype(np.float32)
    classifies = hasattr(estimator, "predict_proba")
    options = {id(estimator): {"zipmap": False}} if classifies else None
    with converting(f"{name}: conversion"):
        proto = converter.to_onnx(estimator, examples, options=options)
    return io.from_proto(proto)
