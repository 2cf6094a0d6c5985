"""Memory that candidates take: what a process holds of weights, activations and beside them.

Weights on a low-bit kernel are held as they are stored, others as float: a convolution with weights
in few bits unpacks them when it is loaded. What else is held is first taken to go with what is
written, and corrected by what whole candidates measure, see `search_pace`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lwqc.backends.memory import peak_memory
from lwqc.plan import SiteEntry
from lwqc.search_items import SearchModel
from lwqc.search_log import SearchLog
from lwqc.search_space import Stored
from lwqc.workspace import Workspace

_WEIGHTS = 0.9  # of the original's memory that its weights may account for
_CONSTANT = 0.05


def measure_memory(found: SearchModel, log: SearchLog) -> None:
    """Set the memory of the space. Measured once for a log."""
    space, whole = found.space, reference_memory(found.work, log)
    space.stored = tuple(
        dataclasses.replace(s, held=tuple(_held(found.work, s, e) for e in s.entries))
        for s in space.stored
    )
    space.forget()
    space.pace["memory_bytes"] = np.ones(3)
    weights, written, _ = space.parts(space.top, "memory_bytes")
    constant = _CONSTANT * whole
    share = min(1.0, _WEIGHTS * whole / max(weights, 1.0))
    left = max(whole - share * weights - constant, constant)
    space.pace["memory_bytes"] = np.array([share, left / max(written, 1.0), constant])


def reference_memory(work: Workspace, log: SearchLog) -> float:
    """Bytes that a process with the original takes. Measured once for a log."""
    origin = work.origin or work
    return float(
        log.fact(
            "memory of the original",
            lambda: peak_memory(origin.loadable, origin.served[0].feeds),
        )
    )


def _held(work: Workspace, stored: Stored, entry: SiteEntry | None) -> float:
    """Bytes of a tensor in memory."""
    plain = float(np.prod(stored.shape, dtype=np.int64)) * stored.itemsize
    site = work.sites.get(stored.name)
    if entry is None or site is None or work.target.form(site, entry, work.opset) == "Folded":
        return plain
    return float(entry.size_bytes(site.n, site.k))
