"""SAME padding of dilated convolutions, as numbers: the runtime does not take it otherwise.

onnxruntime refuses `auto_pad` beside dilations, and onnxscript's optimizer forgets the dilations
when it makes numbers of it. With a stride of 1 the numbers do not depend on the input's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import helper

_LESS_FIRST = {"SAME_UPPER": True, "SAME_LOWER": False}


def write_padding(graphs: Iterable[onnx.GraphProto]) -> list[str]:
    """Give dilated SAME convolutions of stride 1 their pads, in place; returns a note, if any."""
    found = []
    for graph in graphs:
        sizes = {t.name: list(t.dims[2:]) for t in graph.initializer}
        found += [node for node in graph.node if _written(node, sizes)]
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    named = found[0].name or found[0].output[0]
    return [f"SAME padding of dilated kernels is written in numbers: {named}{more}"]


def _written(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> bool:
    if node.op_type != "Conv" or node.domain:
        return False
    known = {a.name: a for a in node.attribute}
    auto = known["auto_pad"].s.decode() if "auto_pad" in known else ""
    dilations = list(known["dilations"].ints) if "dilations" in known else []
    if auto not in _LESS_FIRST or max(dilations, default=1) == 1:
        return False
    kernel = known["kernel_shape"].ints if "kernel_shape" in known else sizes.get(node.input[1])
    strides = known["strides"].ints if "strides" in known else []
    if not kernel or any(stride != 1 for stride in strides):
        return False
    whole = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    less, rest = [n // 2 for n in whole], [n - n // 2 for n in whole]
    pads = less + rest if _LESS_FIRST[auto] else rest + less
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    written = [*kept, helper.make_attribute("pads", pads)]
    del node.attribute[:]
    node.attribute.extend(written)
    return True
