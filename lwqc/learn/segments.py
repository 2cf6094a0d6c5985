"""Running a program so that gradients keep what lies between its segments, and no more.

What is inside a segment is computed again on the way back (Chen et al., arXiv 1604.06174): with a
cut at every residual sum that takes the memory of the sums and of one block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lwqc.learn.program import Program, Scope


class Segments:
    """A program in segments."""

    def __init__(self, program: Program, ends: Sequence[int]) -> None:
        """ends: steps that segments end before; the last one ends with the program."""
        inner = sorted({end for end in ends if 0 < end < len(program.steps)})
        bounds = [0, *inner, len(program.steps)]
        self._parts = [program.part(b, e) for b, e in pairwise(bounds)]
        later, self._later = frozenset(program.outputs), list[frozenset[int]]()
        for part in reversed(self._parts):
            self._later.append(later)
            later |= part.reads
        self._later.reverse()

    def __len__(self) -> int:
        return len(self._parts)

    def run(self, scope: Scope, kept: Collection[int]) -> None:
        """As `Program.run`; without gradients it is the same."""
        for part, later in zip(self._parts, self._later, strict=True):
            if not torch.is_grad_enabled():
                part.run(scope, frozenset(kept))
                continue
            made = {place for step in part.steps for place in step.outputs}
            wanted = sorted(made & (later | set(kept)))
            read = sorted(part.reads & scope.keys())
            values = checkpoint(
                _running(part, read, wanted), *(scope[p] for p in read), use_reentrant=False
            )
            scope.update(zip(wanted, values, strict=True))
            for place in [p for p in scope if p not in later and p not in kept]:
                del scope[place]


def _running(part: Program, read: Sequence[int], wanted: Sequence[int]) -> Any:
    """The part as a function of what it reads."""

    def run(*values: Any) -> tuple[Any, ...]:
        scope = dict(zip(read, values, strict=True))
        part.run(scope, frozenset(wanted))
        return tuple(scope.get(place) for place in wanted)

    return run
