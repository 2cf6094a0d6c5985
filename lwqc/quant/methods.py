"""Weight methods by name: what a plan's `method` stands for."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.coordinate_descent import coordinate_descent
from lwqc.quant.formats import WeightFormat
from lwqc.quant.gpfq import gpfq
from lwqc.quant.gptq import gptq
from lwqc.quant.grid import Encoded
from lwqc.quant.range_search import encode

Method = Literal["rtn", "gptq", "gptq-order", "gptq-refit", "gpfq", "descent"]
METHODS: tuple[str, ...] = get_args(Method)


def encode_by(
    method: Method,
    weight: NDArray[np.floating],
    fmt: WeightFormat,
    gram: NDArray[np.float64] | None,
    *,
    search: bool = True,
) -> Encoded:
    """Quantize a weight [N, K].

    rtn: round to nearest. gptq: later inputs take up the error; `-order` visits those with the
    most energy first, `-refit` fits the scales of each block when it is reached. gpfq: greedy path
    following. descent: gptq, then coordinate descent on codes and scales.

    gram: mean of x xᵀ [groups, K, K], groups being those of a convolution, whose rows of the
    weight are together; None falls back to round to nearest. search: see `range_search.encode`.
    """
    if method == "rtn" or gram is None:
        return encode(weight, fmt, search=search)
    rows = len(weight) // len(gram)
    parts = [
        _one(method, weight[i * rows : (i + 1) * rows], fmt, matrix)
        for i, matrix in enumerate(gram)
    ]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _one(
    method: Method, weight: NDArray[np.floating], fmt: WeightFormat, gram: NDArray[np.float64]
) -> Encoded:
    if method == "gpfq":
        return gpfq(weight, fmt, gram)
    if method == "gptq-refit":
        return gptq(weight, fmt, gram, scales="refit")
    if method == "descent":
        return coordinate_descent(weight, gptq(weight, fmt, gram, order="activation"), gram)
    return gptq(weight, fmt, gram, order="activation" if method == "gptq-order" else "none")


def _joined(parts: list[Encoded]) -> Encoded:
    first = parts[0]
    return Encoded(
        first.format,
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scale for p in parts]),
        np.concatenate([p.zero for p in parts]),
        first.k,
    )
