"""lwqc compiles ONNX models to smaller and faster ones for stock ONNX Runtime.

Public names are loaded when they are first asked for: importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lwqc.plans.version import VERSION

if TYPE_CHECKING:
    from lwqc.api import (
        apply,
        bench,
        compress,
        drop_layers,
        inspect,
        lower,
        plan,
        prune,
        prune_vocabulary,
        quantize,
        recover,
        to_torch,
        verify,
        write_back,
    )
    from lwqc.compile.compressed import Compressed
    from lwqc.compile.saved_check import save
    from lwqc.decide.allocator import Allocator
    from lwqc.decide.scores.branches.score import BranchFacts, BranchScore
    from lwqc.decide.scores.channels.score import ChannelScore, GroupFacts
    from lwqc.errors import ConstraintError, InputError, LwqcError
    from lwqc.model.io import load
    from lwqc.plans.plan import Plan
    from lwqc.plans.recipe import Recipe


__version__ = VERSION

__all__ = [
    "Allocator",
    "BranchFacts",
    "BranchScore",
    "ChannelScore",
    "Compressed",
    "ConstraintError",
    "GroupFacts",
    "InputError",
    "LwqcError",
    "Plan",
    "Recipe",
    "apply",
    "bench",
    "compress",
    "drop_layers",
    "inspect",
    "load",
    "lower",
    "plan",
    "prune",
    "prune_vocabulary",
    "quantize",
    "recover",
    "save",
    "to_torch",
    "verify",
    "write_back",
]

# Where the names come from that `lwqc.api` does not hold.
_HOMES = {
    "Allocator": "lwqc.decide.allocator",
    "BranchFacts": "lwqc.decide.scores.branches.score",
    "BranchScore": "lwqc.decide.scores.branches.score",
    "ChannelScore": "lwqc.decide.scores.channels.score",
    "GroupFacts": "lwqc.decide.scores.channels.score",
    "Compressed": "lwqc.compile.compressed",
    "ConstraintError": "lwqc.errors",
    "InputError": "lwqc.errors",
    "LwqcError": "lwqc.errors",
    "Plan": "lwqc.plans.plan",
    "Recipe": "lwqc.plans.recipe",
    "load": "lwqc.model.io",
    "save": "lwqc.compile.saved_check",
}


if not TYPE_CHECKING:  # or it would stand for every name there is not

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "lwqc.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
