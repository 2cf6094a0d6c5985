"""lwqc compiles ONNX models to smaller and faster ones for stock ONNX Runtime."""

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

__version__ = "0.1.0"

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
