"""How each operator relates the dimensions of its tensors: one row per (domain, operator).

An operator that is not in the table is a barrier: everything it touches is frozen.
"""

from __future__ import annotations

from lwqc.graph.rules import (
    attention,
    elementwise,
    linear,
    movement,
    normalization,
    quantized,
    reading_shapes,
    recurrent,
)
from lwqc.graph.rules.context import Rule, Rules

_TABLES = (
    elementwise,
    normalization,
    linear,
    movement,
    reading_shapes,
    recurrent,
    quantized,
    attention,
)
RULES: dict[tuple[str, str], Rule] = {
    key: rule for table in _TABLES for key, rule in table.RULES.items()
}
__all__ = ["RULES", "Rule", "Rules"]
