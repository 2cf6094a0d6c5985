"""Multiples in which channels should be kept so that kernels run at full speed."""

from __future__ import annotations

import math

import numpy as np

from lwqc.graph.groups import Group
from lwqc.model.weights import stored_tensor


def width_step(group: Group, round_to: int) -> int:
    """How many indices make `round_to` positions in every weight axis that the group is part of.

    One head of 64 dimensions already is a multiple of 8; of single channels it takes eight.
    """
    step = 1
    for occurrence in group.weights:
        tensor = stored_tensor(occurrence.value)
        if tensor is None or len(tensor.shape) < 2:
            continue
        per_index = int(np.count_nonzero(group.owner(occurrence) == 0))
        step = math.lcm(step, round_to // math.gcd(round_to, max(per_index, 1)))
    return step
