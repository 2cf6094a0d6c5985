"""Rewriting rules that are tried only where their last operator is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir


@contextlib.contextmanager
def rooted_rules() -> Iterator[None]:
    """Let onnxscript's optimizer try each of its rules only at nodes that it can end with.

    onnxscript 0.7.2 matches each of its 40 rules at each node, and a rule with several results goes
    over the whole graph for it: two thirds of the time of constant folding. What a rule rewrites
    does not change. A version without that list of rules is used as it is.
    """
    from onnxscript import rewriter

    rules = getattr(rewriter, _RULES, None)
    if rules is None or any(isinstance(rule, _Rooted) for rule in rules):
        yield
        return
    setattr(rewriter, _RULES, tuple(_Rooted(rule) for rule in rules))
    try:
        yield
    finally:
        setattr(rewriter, _RULES, rules)


_RULES = "_DEFAULT_REWRITE_RULES"


class _Rooted:
    """A rule of onnxscript that looks at a node's operator first."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        pattern = getattr(rule, "_target_pattern", None)
        ends = getattr(pattern, "output_nodes", None)
        found = ends[0].op_identifier() if ends else None
        self._root = None if found is None else found[:2]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        """The rewritten part, or None."""
        if self._root is not None and (node.domain, node.op_type) != self._root:
            return None
        return self._rule.try_rewrite(model, graph, node, **options)
