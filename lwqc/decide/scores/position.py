"""The rule by which k-quant mixes give some layers more bits, from their position alone."""

from __future__ import annotations


def wants_more_bits(index: int, count: int) -> bool:
    """Whether layer `index` of `count` is in the first or last eighth, or a third one between.

    Source: llama.cpp's Q4_K_M, which onnxruntime's k_quant_mixed follows.
    """
    eighth = count // 8
    return index < eighth or index >= count - eighth or (index - eighth) % 3 == 2
