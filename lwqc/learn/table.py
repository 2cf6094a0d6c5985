"""The torch function of each operator: the tables of all families in one."""

from __future__ import annotations

from lwqc.learn.functions import (
    attention,
    casts,
    codes,
    control,
    convolution,
    elementwise,
    indexing,
    integer_products,
    normalization,
    packed_weights,
    pooling,
    products,
    random_numbers,
    recurrent,
    reductions,
    resampling,
    sequences,
    shapes,
    signals,
)
from lwqc.learn.operation import Key, Operation

_FAMILIES = (
    attention,
    casts,
    codes,
    control,
    convolution,
    elementwise,
    indexing,
    integer_products,
    normalization,
    packed_weights,
    pooling,
    products,
    random_numbers,
    recurrent,
    reductions,
    resampling,
    sequences,
    shapes,
    signals,
)
OPERATIONS: dict[Key, Operation] = {k: v for each in _FAMILIES for k, v in each.TABLE.items()}
