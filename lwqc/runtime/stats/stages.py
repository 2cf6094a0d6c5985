"""Which of several runs, one after the other, first needs each value of a model, and which last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from lwqc.graph.varying import operands, varying
from lwqc.runtime.stats.segments import is_plain


class Stages:
    """Stages 0, 1, ... of a sorted main graph: each computes what the ones before it did not.

    So of what one stage computes, the next ones need only `kept`. Values that depend on weights
    alone are left out: every stage computes them anew.
    """

    def __init__(self, model: ir.Model, observed: Sequence[Collection[str]]) -> None:
        """observed: tensors that each stage has to give; others than the main graph's are left."""
        graph = model.graph
        read = operands(graph)
        self._made = varying(graph, read)
        names = [[v.name or "" for v in values] for values in read]
        self._reads = [list(dict.fromkeys(n for n in ns if n in self._made)) for ns in names]
        self._first = {v.name or "": -1 for v in graph.inputs}
        produced = (v for node in graph for v in node.outputs)
        self._plain = {*self._first, *(v.name or "" for v in produced if is_plain(v))}
        self._last: dict[str, int] = {}
        outputs = [[v.name or "" for v in node.outputs] for node in graph]
        for stage, wanted in enumerate(observed):
            todo = [n for n in wanted if n in self._made]
            while todo:
                name = todo.pop()
                self._last[name] = stage
                if name not in self._first:
                    node = self._made[name]
                    self._first.update(dict.fromkeys(outputs[node], stage))
                    todo += self._reads[node]

    def kept(self, stage: int) -> set[str]:
        """What stages behind that one read of it and of those before; of -1 inputs of the model.

        What cannot be an input of a run is not kept, but what it is computed from.
        """
        known = (n for n, last in self._last.items() if self._first[n] <= stage < last)
        return self._computed_from(known, self._plain)

    def read(self, names: Iterable[str], kept: Collection[str]) -> set[str]:
        """What of `kept` has to be known for these values."""
        return self._computed_from((n for n in names if n in self._made), kept)

    def _computed_from(self, names: Iterable[str], ends: Collection[str]) -> set[str]:
        """The values that others are computed from, the closest of those that may be ends."""
        todo, seen, found = list(names), set[str](), set[str]()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in ends:
                found.add(name)
            else:
                todo += self._reads[self._made[name]]
        return found
