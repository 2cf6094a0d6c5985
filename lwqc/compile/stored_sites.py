"""How the weights of sites can be stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lwqc.compile.version import Version
from lwqc.graph.sites import Site
from lwqc.plans.plan import SiteEntry
from lwqc.quant.half import fits_half

_HALF = (0.02, 6e4)  # peaks of weights whose scales are normal float16 numbers at any bits


def storable(work: Version, site: str, entry: SiteEntry) -> SiteEntry | str:
    """The entry, with float32 scales where float16 ones would not do; or why it cannot be.

    Weights of models of more than a gigabyte are not looked at.
    """
    fmt = entry.weight
    # onnxruntime 1.31.1 takes scales that are not stored as zeros in blocks with 8-bit
    # activations: where optimizations are off, those that are cast from float16.
    if fmt.block is not None and fmt.scale != "float32" and entry.activation == "dynamic":
        fmt = replace(fmt, scale="float32")
        entry = entry.model_copy(update={"weight": fmt})
    if work.is_large:
        return entry
    peak = work.facts.get(("peak", site), lambda: _peak(work, site))
    if peak == np.inf:
        return "holds NaN or infinity"
    if fmt.kind in ("fp16", "vq"):
        return entry if fits_half(peak) else "float16 does not hold its numbers"
    if fmt.scale == "float32" or peak == 0 or _HALF[0] < peak < _HALF[1]:
        return entry
    return entry.model_copy(update={"weight": replace(fmt, scale="float32")})


def _peak(work: Version, site: str) -> float:
    """Largest magnitude of a weight; infinite where not all of its numbers are finite."""
    weight = work.weights.weight(site)
    peak = max(float(weight.max(initial=0)), -float(weight.min(initial=0)))
    return peak if np.isfinite(weight).all() else np.inf


def unquantized_bytes(work: Version, site: Site) -> int:
    """What a site's weight takes without a number format."""
    return site.float_bytes if work.floats is None else min(site.float_bytes, 2 * site.size)
