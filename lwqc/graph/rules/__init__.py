"""How each operator relates the dimensions of its tensors: one row per (domain, operator).

An operator that is not in the table is a barrier: everything it touches is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from lwqc.errors import InputError
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
GROUP = "lwqc.rules"
__all__ = ["GROUP", "RULES", "Rule", "Rules", "all_rules"]


@cache
def all_rules() -> Rules:
    """Those of lwqc, and those of installed packages for operators that lwqc has none for.

    An entry point of the group names a mapping like `RULES`. Raises InputError for one that cannot
    be loaded or is something else.
    """
    found: dict[tuple[str, str], Rule] = {}
    for point in entry_points(group=GROUP):
        where = f"rules {point.name}: {point.value}"
        try:
            table = point.load()
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{where} cannot be loaded: {reason}") from error
        if not isinstance(table, Mapping):
            raise InputError(f"{where} is a {type(table).__name__}; expected a mapping of rules")
        found.update(table)
    return {**found, **RULES}
