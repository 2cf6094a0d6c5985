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
from lwqc.graph.rules.context import Context, Rule, Rules
from lwqc.graph.rules.fit import BarrierError
from lwqc.model.user_code import load_point, package_of, running_package

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
        table = load_point(point, where)
        if not isinstance(table, Mapping):
            raise InputError(f"{where} is a {type(table).__name__}; expected a mapping of rules")
        for (domain, operator), rule in table.items():
            name = f"{domain}.{operator}".lstrip(".")
            found[domain, operator] = _told(f"rule for {name} (of {package_of(point)})", rule)
    return {**found, **RULES}


def _told(what: str, rule: Rule) -> Rule:
    """A rule of a package, whose failures are told under its name."""

    def run(ctx: Context) -> None:
        barrier = None
        with running_package(lambda: what):
            try:
                rule(ctx)
            except BarrierError as error:
                barrier = error
        if barrier is not None:
            raise barrier

    return run
