"""Memory that candidates take: what a process holds of weights, of activations, and beside them.

Weights on a low-bit kernel are held as they are stored, others as float: a convolution with weights
in few bits unpacks them when it is loaded. Activations take what is needed at once, at the moment
of the run when that is most. Predictions are corrected by what whole candidates measure, see
`search_pace`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.candidates import with_formats
from lwqc.compile.version import Version
from lwqc.decide.planning import unchanged
from lwqc.decide.search.items import SearchModel
from lwqc.decide.search.log import SearchLog
from lwqc.decide.search.space import Stored
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.memory import peak_memory

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_IN_PLACE = frozenset({"Relu", "Clip", "Add", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Softmax"})
_WEIGHTS = 0.9  # of the float model's memory that its weights may account for
_CONSTANT = 0.05


def measure_memory(found: SearchModel, log: SearchLog) -> None:
    """Set the memory of the space. Measured once for a log."""
    space, work = found.space, found.work
    space.stored = tuple(
        dataclasses.replace(s, held=tuple(_held(work, s, e) for e in s.entries))
        for s in space.stored
    )
    space.together = moments(found.prunable.model.graph, len(space.written))
    space.forget()
    whole = _float_memory(work, log)
    weights, alive, _ = space.parts(space.top, "memory_bytes")
    constant = _CONSTANT * whole
    share = min(1.0, _WEIGHTS * whole / max(weights, 1.0))
    left = max(whole - share * weights - constant, constant)
    space.pace["memory_bytes"] = np.array([share, left / max(alive, 1.0), constant])


def moments(graph: ir.Graph, count: int) -> NDArray[np.float64]:
    """Which nodes' outputs are in memory while each node runs [nodes, count], with 1.

    In the order of the graph. Outputs last until their last reader, those of the graph to its end.
    Reshapes share the memory of what they read; operators on single elements write into an input
    that nothing else reads.
    """
    nodes = list(graph)
    place: dict[ir.Value, int] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        read = [place[v] for v in node.inputs if v is not None and v in place]
        shares = node.op_type in _VIEWS and read
        own = read[0] if shares else index
        for value in node.outputs:
            place[value] = own
        for made in (*read, own):
            last[made] = index
    for value in graph.outputs:
        if value in place:
            last[place[value]] = len(nodes)
    table = np.zeros((len(nodes), count))
    for made, end in last.items():
        # Written over by its last reader, which then stands for both.
        over = end < len(nodes) and nodes[end].op_type in _IN_PLACE
        table[made : end if over and end > made else end + 1, made] = 1
    return table


def reference_memory(work: Version, log: SearchLog) -> float:
    """Bytes that a process with the original takes. Measured once for a log."""
    original = work.original
    return float(
        log.fact(
            "memory of the original",
            lambda: peak_memory(original.loadable, work.job.data.serve[0].feeds),
        )
    )


def _float_memory(work: Version, log: SearchLog) -> float:
    """Bytes that a process with the model takes as it is searched: cleaned up, perhaps."""
    if work.model is work.original.model:
        return reference_memory(work, log)
    feeds = work.job.data.serve[0].feeds
    return float(
        log.fact(
            "memory of the float model",
            lambda: peak_memory(with_formats(work, unchanged(work)).model, feeds),
        )
    )


def _held(work: Version, stored: Stored, entry: SiteEntry | None) -> float:
    """Bytes of a tensor in memory."""
    plain = float(np.prod(stored.shape, dtype=np.int64)) * stored.itemsize
    site = work.sites.get(stored.name)
    if entry is None or site is None or work.job.target.form(site, entry, work.opset) == "Folded":
        return plain
    return float(entry.size_bytes(site.n, site.k))
