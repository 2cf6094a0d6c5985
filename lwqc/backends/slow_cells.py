"""Forms whose kernel has a name and no speed: it makes floats of the whole weight in every run."""

from __future__ import annotations

from lwqc.plans.plan import SiteEntry

_QUICK_2_BIT_BLOCKS = frozenset({32, 64, 128})


def unpacks_every_run(entry: SiteEntry) -> bool:
    """Whether onnxruntime's MatMulNBits has no code for an entry and unpacks its weight each time.

    At one row that takes 10 to 100 times as long as the float product, with and without VNNI. The
    runtime says so only in its log: "Falling back to using unpacked compute mode". Read off
    onnxruntime 1.31.1.
    """
    fmt = entry.weight
    if fmt.kind != "int" or fmt.block is None or fmt.storage_bits == 4:
        return False
    if entry.activation == "none":
        return True
    return fmt.storage_bits == 2 and fmt.block not in _QUICK_2_BIT_BLOCKS
