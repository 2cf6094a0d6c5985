"""Rewrites that need nothing but names, or nothing at all, in the form that a text can ask for.

The rewrites themselves also return what the steps of a plan go on with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.passes.base import Pass
from lwqc.passes.context import Context
from lwqc.passes.parallel_branches import ParallelBranches
from lwqc.passes.remove_branches import RemoveBranches
from lwqc.passes.restore_floats import RestoreFloats


@dataclass(frozen=True)
class RemoveNamedBranches(Pass):
    """Remove residual branches, see `lwqc drop` for which.

    Matches: the branches in `names`, as `lwqc inspect --branches` prints them.
    Rewrites to: the sum without the branch; what only it needed goes too, and with
        `keep_signature` inputs and outputs of a cache stay. Another model.
    Refuses: names that the model does not have, with an error.
    """

    name: ClassVar[str] = "remove-branches"
    exact: ClassVar[bool] = False
    names: tuple[str, ...]
    keep_signature: bool = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Remove them. Raises InputError."""
        RemoveBranches(self.names, keep_signature=self.keep_signature).call(model)
        return len(self.names)


@dataclass(frozen=True)
class ParallelNamedBranches(Pass):
    """Let residual branches that follow each other read one stream.

    Matches: pairs of branches in a row; `pairs` has their names, two by two.
    Rewrites to: y = x + f1(x) + f2(x), an approximation.
    Refuses: branches that are not adjacent, with an error.
    """

    name: ClassVar[str] = "parallel-branches"
    exact: ClassVar[bool] = False
    pairs: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises InputError for an odd number of names."""
        if len(self.pairs) % 2:
            raise InputError(f"parallel-branches: {len(self.pairs)} names do not make pairs")

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Rewire them. Raises InputError."""
        pairs = list(zip(self.pairs[::2], self.pairs[1::2], strict=True))
        ParallelBranches(pairs).call(model)
        return len(pairs)


class RestoreAllFloats(Pass):
    """Make a float model of a quantized one.

    Matches: codes and the operators on them, of all forms that lwqc and other quantizers write.
    Rewrites to: float weights and operators; tensors that codes kept within a range are clipped.
    Refuses: what is not stored, with the reason.
    """

    name: ClassVar[str] = "restore-floats"
    exact: ClassVar[bool] = False

    def rewrite(self, model: ir.Model, ctx: Context) -> int:
        """Restore the main graph."""
        step = RestoreFloats()
        modified = step.call(model).modified
        for what, reason in step.left.items():
            ctx.refuse(what, reason)
        return int(modified)
