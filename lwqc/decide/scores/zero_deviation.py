"""ZD: the share of outstanding weights (Layer-Wise Quantization, arXiv 2406.17415)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def zd(weights: NDArray[np.floating[Any]], *, two_sided: bool = False) -> float:
    """Fraction of a layer's weights more than one standard deviation above their mean (eq. 2).

    weights: all of the layer's together; matrices of one layer differ by kind, not by importance. A
    layer with a lower value is more important. two_sided counts |z| > 1 instead, as some
    re-implementations do.
    """
    values = np.asarray(weights, np.float32).ravel()
    deviation = values.std()
    if values.size == 0 or deviation == 0:
        return 0.0
    z = (values - values.mean()) / deviation
    return float(np.mean(np.abs(z) > 1 if two_sided else z > 1))
