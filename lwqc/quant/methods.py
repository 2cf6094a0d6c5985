"""Weight methods by name: what a plan's `method` stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.quant.coordinate_descent import coordinate_descent
from lwqc.quant.dual_grained import GRAINED_METHODS, not_for_grained
from lwqc.quant.fitted_codebook import encode_in_codebook
from lwqc.quant.formats import WeightFormat
from lwqc.quant.gpfq import gpfq
from lwqc.quant.gptq import gptq
from lwqc.quant.grid import Encoded, joined
from lwqc.quant.half import encode_half
from lwqc.quant.hqq import hqq
from lwqc.quant.k_quant import k_quant
from lwqc.quant.range_search import encode

Method = Literal["rtn", "hqq", "k-quant", "gptq", "gptq-order", "gptq-refit", "gpfq", "descent"]
METHODS: tuple[str, ...] = get_args(Method)

Weight = NDArray[np.floating]
Gram = NDArray[np.float64]

_ON_WEIGHTS: Mapping[str, Callable[[Weight, WeightFormat], Encoded]] = {
    "hqq": hqq,
    "k-quant": k_quant,
}


def _descent(weight: Weight, fmt: WeightFormat, gram: Gram) -> Encoded:
    start = gptq(weight, fmt, gram, order="activation")
    return coordinate_descent(weight, start, gram, refit_scales=not fmt.grained)


_ON_DATA: Mapping[str, Callable[[Weight, WeightFormat, Gram], Encoded]] = {
    "gptq": gptq,
    "gptq-order": partial(gptq, order="activation"),
    "gptq-refit": partial(gptq, scales="refit"),
    "gpfq": gpfq,
    "descent": _descent,
}
# They take all groups of rows at once, and of a large matrix some rows at a time.
ROW_METHODS = frozenset({"gptq", "gptq-order", "gptq-refit"})
DATA_METHODS = frozenset(_ON_DATA)


def encode_by(
    method: Method,
    weight: Weight,
    fmt: WeightFormat,
    gram: Gram | None,
    *,
    search: bool = True,
) -> Encoded:
    """Quantize a weight [N, K].

    rtn: round to nearest. hqq: least sum of |error|^0.7. k-quant: least squares with large weights
    counting more. These look at the weight alone; `DATA_METHODS` also look at the data. gptq: later
    inputs take up the error; `-order` visits those with the most energy first, `-refit` fits the
    scales of each block when it is reached. gpfq: greedy path following. descent: gptq, then
    coordinate descent on codes and scales.

    gram: mean of x xᵀ [groups, K, K], groups being those of a convolution, whose rows of the
    weight are together; without it, `DATA_METHODS` fall back to round to nearest. search: of rtn,
    see `range_search.encode`. Float16 has a single way to be rounded to; what the methods do with
    codebooks, and which can, says `fitted_codebook`.
    """
    if fmt.kind == "fp16":
        return encode_half(weight)
    if fmt.kind == "vq":
        return encode_in_codebook(weight, fmt, gram, method)
    if fmt.grained and method not in GRAINED_METHODS:
        raise InputError(not_for_grained(method))
    if method in ROW_METHODS and gram is not None:
        return _ON_DATA[method](weight, fmt, gram)
    if method in DATA_METHODS and gram is not None:
        return _by_group(_ON_DATA[method], weight, fmt, gram)
    if method in DATA_METHODS or method == "rtn":
        return encode(weight, fmt, search=search)
    return _ON_WEIGHTS[method](weight, fmt)


def _by_group(
    quantize: Callable[[Weight, WeightFormat, Gram], Encoded],
    weight: Weight,
    fmt: WeightFormat,
    gram: Gram,
) -> Encoded:
    rows = len(weight) // len(gram)
    parts = [
        quantize(weight[i * rows : (i + 1) * rows], fmt, matrix) for i, matrix in enumerate(gram)
    ]
    return joined(parts)
