"""What tests of passes need: models as text, assertions, traps, oracles and random graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lwqc.errors import InputError
from lwqc.testing.outputs import assert_same_outputs, feeds_of, outputs_of
from lwqc.testing.rewrites import Applied, applied, assert_rewrites, assert_untouched
from lwqc.testing.text import AnyModel, model_of, to_text
from lwqc.testing.traps import TRAPS, Trap, assert_harmless, assert_survives

if TYPE_CHECKING:
    import onnx_ir as ir
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "TRAPS",
    "AnyModel",
    "Applied",
    "Trap",
    "applied",
    "assert_harmless",
    "assert_rewrites",
    "assert_same_outputs",
    "assert_survives",
    "assert_untouched",
    "feeds_of",
    "model_of",
    "outputs_of",
    "random_models",
    "to_text",
]


def random_models(**options: Any) -> SearchStrategy[ir.Model]:
    """A strategy of hypothesis that draws small valid float32 models, see `random_graphs.models`.

    Each is a model of its own, which a test may change. options: `kinds` of steps, `min_nodes`,
    `max_nodes`. Raises InputError without hypothesis.
    """
    try:
        import hypothesis  # noqa: F401
    except ImportError as error:
        raise InputError("random graphs need hypothesis: pip install hypothesis") from error
    from onnx_ir import from_proto

    from lwqc.testing.random_graphs.models import models

    return models(**options).map(from_proto)
