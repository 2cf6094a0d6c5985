"""lwqc compiles ONNX models to smaller and faster ones for stock ONNX Runtime.

Public names are loaded when they are first asked for: importing the package costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lwqc.version import VERSION

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
        quantize,
        verify,
    )
    from lwqc.compressed import Compressed
    from lwqc.errors import ConstraintError, InputError, LwqcError
    from lwqc.io import load
    from lwqc.plan import Plan
    from lwqc.recipe import Recipe
    from lwqc.saved_check import save


__version__ = VERSION

__all__ = [
    "Compressed",
    "ConstraintError",
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
    "quantize",
    "save",
    "verify",
]

# Where the names come from that `lwqc.api` does not hold.
_HOMES = {
    "Compressed": "lwqc.compressed",
    "ConstraintError": "lwqc.errors",
    "InputError": "lwqc.errors",
    "LwqcError": "lwqc.errors",
    "Plan": "lwqc.plan",
    "Recipe": "lwqc.recipe",
    "load": "lwqc.io",
    "save": "lwqc.saved_check",
}


class _Package(ModuleType):
    """The package, whose public names win over its modules of the same name.

    Whoever imports `lwqc.plan` has the import system bind that module here, over the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if not TYPE_CHECKING:  # or it would stand for every name there is not

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "lwqc.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
