"""What tests of passes need: models as text, assertions, traps, oracles and random graphs."""

from __future__ import annotations

from lwqc.testing.outputs import assert_same_outputs, feeds_of, outputs_of
from lwqc.testing.rewrites import Applied, applied, assert_rewrites, assert_untouched
from lwqc.testing.text import model_of, to_text
from lwqc.testing.traps import TRAPS, Trap, assert_harmless, assert_survives

__all__ = [
    "TRAPS",
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
    "to_text",
]
