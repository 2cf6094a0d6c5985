"""The compiled half of range search: the same bytes as numpy's, in a fraction of the time.

`hatch_build.py` compiles `blocks.c` where there is a C compiler when lwqc is installed. Without the
library, or with `LWQC_NATIVE=off`, numpy does the same work.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lwqc.quant.formats import WeightFormat
from lwqc.quant.unit_grid import code_range

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
VARIABLE = "LWQC_NATIVE"
_OFF = ("off", "0", "false", "no")
LIBRARY = Path(__file__).with_name("_blocks.so")


def searched(
    columns: Float, start: Float, zero: Float, fractions: tuple[float, ...], fmt: WeightFormat
) -> Float | None:
    """Best scales [m] of columns [block, m], see `range_search`; None where numpy has to do it.

    start, zero: [m], scale of the full range and zero point. fractions: of the scale to try.
    """
    library = _library()
    if library is None or not _fits(fmt, columns, start, zero):
        return None
    best, tried = np.empty_like(start), np.array(fractions, np.float32)
    block, m = columns.shape
    failed = library.search(
        _at(columns), m, block, _at(start), _at(zero), _at(tried), len(tried), *code_range(fmt),
        _at(best),
    )  # fmt: skip
    return None if failed else best


def encoded(columns: Float, scale: Float, zero: Float, fmt: WeightFormat, out: Codes) -> bool:
    """Write codes of columns [block, blocks * r] to out [r, blocks, block]; False: nothing done.

    scale, zero: [blocks * r].
    """
    library = _library()
    if library is None or not (_fits(fmt, columns, scale, zero) and out.flags.c_contiguous):
        return False
    rows, blocks, block = out.shape
    failed = library.encode(
        _at(columns), rows, blocks, block, _at(scale), _at(zero), *code_range(fmt), _at(out)
    )
    return not failed


def _fits(fmt: WeightFormat, columns: Float, *per_column: Float) -> bool:
    """Whether the library computes this; one column alone is summed in another order by numpy."""
    arrays = (columns, *per_column)
    plain = all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays)
    return fmt.kind == "int" and plain and columns.shape[1] > 1


def _at(array: Float | Codes) -> int:
    return array.ctypes.data


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(VARIABLE, "").lower() in _OFF or not LIBRARY.exists():
        return None
    try:
        return opened(LIBRARY)
    except OSError:  # of another processor, or of another system's C library
        return None


def opened(path: Path) -> ctypes.CDLL:
    """The compiled library at a path. Raises OSError."""
    library = ctypes.CDLL(str(path))
    pointer, whole, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.search.argtypes = [
        pointer, whole, whole, pointer, pointer, pointer, whole, number, number, pointer,
    ]  # fmt: skip
    library.encode.argtypes = [
        pointer, whole, whole, whole, pointer, pointer, number, number, pointer,
    ]  # fmt: skip
    return library
