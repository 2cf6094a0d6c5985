"""Rules that are tried only where their last operators are, and match no other numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

_RULES = "_DEFAULT_REWRITE_RULES"
_Operator = tuple[str, str]  # domain and type


@contextlib.contextmanager
def rooted_rules() -> Iterator[None]:
    """Let onnxscript's optimizer try each of its rules only at nodes that it can end with.

    onnxscript 0.7.2 matches each of its 46 rules at each node, and a rule with several results goes
    over the whole graph for it: two thirds of the time of constant folding. A version without that
    list of rules is used as it is.

    A number in a rule matches that number alone. By itself 0 would also match 1e-8, and 1 numbers
    up to 1.00001: epsilons that keep a logarithm or a quotient finite would be gone.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, _RULES, None)
    if rules is None or any(isinstance(rule, _Rooted) for rule in rules):
        yield
        return
    numbers = [number for rule in rules for number in _numbers(rule)]
    before = [(number._rel_tol, number._abs_tol) for number in numbers]
    setattr(rewriter, _RULES, tuple(_Rooted(rule) for rule in rules))
    for number in numbers:
        number._rel_tol = number._abs_tol = 0.0
    try:
        yield
    finally:
        setattr(rewriter, _RULES, rules)
        for number, tolerances in zip(numbers, before, strict=True):
            number._rel_tol, number._abs_tol = tolerances


def _numbers(rule: Any) -> Iterator[Any]:
    """The numbers of a rule's pattern that are matched within tolerances."""
    for node in getattr(getattr(rule, "_target_pattern", None), "_nodes", ()):
        yield from (v for v in node.inputs if hasattr(v, "_rel_tol") and hasattr(v, "_abs_tol"))


class _Rooted:
    """A rule of onnxscript that looks at the operators of a node, and of those it reads, first."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        pattern = getattr(rule, "_target_pattern", None)
        ends = getattr(pattern, "output_nodes", None) or [None]
        self._root = _operator(ends[0])
        operands = enumerate(getattr(ends[0], "inputs", ()))
        made = {i: _operator(value.producer()) for i, value in operands if value is not None}
        self._operands = {i: operator for i, operator in made.items() if operator is not None}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        """The rewritten part, or None."""
        if self._root is not None and (node.domain, node.op_type) != self._root:
            return None
        for index, operator in self._operands.items():
            value = node.inputs[index] if index < len(node.inputs) else None
            producer = value.producer() if value is not None else None
            if producer is None or (producer.domain, producer.op_type) != operator:
                return None
        return self._rule.try_rewrite(model, graph, node, **options)


def _operator(pattern: Any) -> _Operator | None:
    """The one operator that a node of a pattern can be; None where it may be several."""
    found = getattr(pattern, "op_identifier", lambda: None)()
    if found is None:  # rules whose operands were exchanged have their operator as two words
        words = (getattr(getattr(pattern, at, None), "_value", None) for at in ("domain", "op"))
        found = tuple(words)
    return (found[0], found[1]) if all(isinstance(word, str) for word in found[:2]) else None
