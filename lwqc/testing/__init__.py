"""What tests of passes need: models as text, assertions, traps, oracles and random graphs."""

from __future__ import annotations

from lwqc.testing.outputs import assert_same_outputs, feeds_of, outputs_of
from lwqc.testing.rewrites import Applied, applied, assert_rewrites, assert_untouched
from lwqc.testing.text import model_of, to_text

__all__ = [
    "Applied",
    "applied",
    "assert_rewrites",
    "assert_same_outputs",
    "assert_untouched",
    "feeds_of",
    "model_of",
    "outputs_of",
    "to_text",
]
