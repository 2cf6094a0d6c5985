"""Takes residual branches out of a model: y = x + f(x) becomes y = x."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.branches import LINEAR, Branch, find_branches
from lwqc.graph.dataflow import SHAPE_ONLY, Dataflow
from lwqc.graph.shapes import known_equal
from lwqc.model.edit import (
    Rewrite,
    add_constant,
    float_type,
    insert_before,
    replace_node,
)
from lwqc.model.names import unique_name
from lwqc.model.unused import RemoveUnused

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)


@dataclass
class Removal:
    """What a removal changed.

    dropped_inputs, dropped_outputs: of the signature. passed_through: output -> the input that it
    now repeats. still_computed: output of a removed branch -> why it stays. left: layers of removed
    branches that stay, as something else reads their result or its shape.
    """

    branches: tuple[str, ...]
    dropped_inputs: list[str] = field(default_factory=list)
    dropped_outputs: list[str] = field(default_factory=list)
    passed_through: dict[str, str] = field(default_factory=dict)
    still_computed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class RemoveBranches(Rewrite):
    """Remove residual branches by name.

    constants: branch -> what it is replaced by, of a shape that broadcasts to the stream's.

    Matches: the branches named, as `find_branches` finds them.
    Rewrites to: the sum without the branch, or with a constant in its place, so a pre-norm goes
    with it and a post-norm stays.
    Nodes and stored tensors that nothing else reads go too, also those outside the branch.
    Graph outputs that the branch computed (a decoder's new keys and values) go, and with them the
    inputs that only it read (the old ones). Where the model reads the length of the text so far
    off such an input, another layer's takes its place; when no other is left, that one input and
    its output stay.
    With `keep_signature` inputs and outputs stay: an output that continues an input repeats it,
    unchanged: its length does not grow, so callers must take the length from a layer that is left.
    Outputs that continue no input go on being computed.
    Refuses: unknown names, and removing every output.

    After `call`, `done` says what changed.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        keep_signature: bool = False,
        constants: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> None:
        super().__init__()
        self._names = tuple(dict.fromkeys(names))
        self._constants = dict(constants or {})
        self._keep_signature = keep_signature
        self.done = Removal(self._names)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the branches. Raises InputError for a name that the model does not have."""
        if not self._names:
            return ir.passes.PassResult(model, False)
        graph = model.graph
        chosen = chosen_branches(graph, self._names)
        self.done = Removal(self._names)
        caches = _Caches(graph, chosen)
        for branch in chosen:
            if branch.name in self._constants:
                _replace_by(graph, branch, self._constants[branch.name])
        _cut(graph, [b for b in chosen if b.name not in self._constants])
        if self._keep_signature:
            caches.pass_through(self.done)
        else:
            caches.drop_outputs(self.done)
        RemoveUnused()(model)
        if not self._keep_signature:
            caches.drop_inputs(self.done)
        present = set(graph)
        layers = (n for branch in chosen for n in branch.nodes if n.op_type in LINEAR)
        self.done.left = [n.name or n.op_type for n in layers if n in present]
        return ir.passes.PassResult(model, True)


def chosen_branches(graph: ir.Graph, names: Iterable[str]) -> list[Branch]:
    """The branches of those names. Raises InputError for one that the model does not have."""
    known = find_branches(graph)
    for name in names:
        if name not in known.by_name:
            refused = {r.name: r.reason for r in known.refused}
            why = f"cannot be removed: {refused[name]}" if name in refused else "is no branch"
            raise InputError(f"{name}: {why}; see lwqc inspect --branches")
    return [known.by_name[name] for name in names]


def _replace_by(graph: ir.Graph, branch: Branch, constant: NDArray[np.floating]) -> None:
    """Let a constant be the term of the sum."""
    values = constant.astype(float_type(branch.stream).numpy())
    stored = add_constant(graph, f"{branch.branch.name}/constant", values)
    branch.add.replace_input_with(list(branch.add.inputs).index(branch.branch), stored)


def _cut(graph: ir.Graph, chosen: Sequence[Branch]) -> None:
    """Take terms out of sums; a sum that has none left is itself taken out of the next."""
    gone: dict[ir.Node, set[ir.Value]] = {}
    for branch in chosen:
        gone.setdefault(branch.add, set()).add(branch.branch)
    position = {node: i for i, node in enumerate(graph)}
    while gone:
        add = min(gone, key=position.__getitem__)
        removed = gone.pop(add)
        rest = [v for v in add.inputs if v is not None and v not in removed]
        if not rest:
            for user in add.outputs[0].consumers():
                gone.setdefault(user, set()).add(add.outputs[0])
        elif len(rest) == 1 and not add.outputs[0].is_graph_output():
            add.outputs[0].replace_all_uses_with(rest[0])
            _forward(gone, add.outputs[0], rest[0])
            graph.remove(add, safe=True)
        else:
            op = "Identity" if len(rest) == 1 else add.op_type
            name = f"{add.outputs[0].name}/rest"
            old, (value,) = add.outputs[0], insert_before(add, op, rest, [name])
            replace_node(add, value)
            _forward(gone, old, value)


def _forward(gone: dict[ir.Node, set[ir.Value]], old: ir.Value, new: ir.Value) -> None:
    """An enclosing branch may end in the sum that was just replaced."""
    for values in gone.values():
        if old in values:
            values.remove(old)
            values.add(new)


class _Caches:
    """Graph inputs and outputs that belong to removed branches, found before the removal."""

    def __init__(self, graph: ir.Graph, chosen: Sequence[Branch]) -> None:
        self.graph = graph
        flow = Dataflow(graph)
        inputs = [v for v in graph.inputs if not v.is_initializer()]
        self.pairs: dict[ir.Value, ir.Value | None] = {}
        self.owned: list[ir.Value] = []  # inputs that one removed branch alone reads
        for branch in chosen:
            outputs = [v for v in graph.outputs if v.producer() in set(branch.nodes)]
            going = set(flow.dying(branch.branch, branch.add, branch.nodes))
            own = [v for v in inputs if _is_state(v) and _serves(v, going, flow)]
            self.owned += [v for v in own if v not in self.owned]
            self.pairs.update(_paired(outputs, own, branch, flow))

    def drop_outputs(self, done: Removal) -> None:
        """Take the branches' outputs out of the signature."""
        rest = [v for v in self.graph.outputs if v not in self.pairs]
        if not rest:
            raise InputError(f"{done.branches[0]}: every output of the model is inside a branch")
        self.graph.outputs[:] = rest
        for output in self._needed(done):
            self.graph.outputs.append(output)
        done.dropped_outputs = [v.name or "" for v in self.pairs if not v.is_graph_output()]

    def drop_inputs(self, done: Removal) -> None:
        """Take inputs that are read no more out of the signature."""
        for value in [v for v in self.owned if not v.uses()]:
            self.graph.inputs.remove(value)
            done.dropped_inputs.append(value.name or "")

    def pass_through(self, done: Removal) -> None:
        """Let outputs repeat the inputs that they continued."""
        order = list(self.graph.outputs)
        self.graph.outputs[:] = [v for v in order if v not in self.pairs]
        needed = self._needed(done)
        replaced = {v: self._repeat(v, done) for v in self.pairs if v not in needed}
        self.graph.outputs[:] = [replaced.get(v, v) for v in order]

    def _repeat(self, output: ir.Value, done: Removal) -> ir.Value:
        source = self.pairs[output]
        if source is None:
            done.still_computed[output.name or ""] = "continues no input that it could repeat"
            return output
        name = output.name or ""
        output.name = unique_name(self.graph, f"{name}/removed")
        value = ir.Value(name=name, type=source.type, shape=source.shape)
        self.graph.append(ir.node("Identity", [source], outputs=[value], name=f"{name}/Identity"))
        done.passed_through[name] = source.name or ""
        return value

    def _needed(self, done: Removal) -> list[ir.Value]:
        """Outputs that must stay as the length of what they continue is read; see the pass."""
        alive = _alive(self.graph)
        continued = {source: output for output, source in self.pairs.items() if source is not None}
        kept: dict[ir.Value, ir.Value] = {}
        for source in self.owned:
            readers = [u for u in source.uses() if u.node in alive]
            if not readers or source in kept:
                continue
            twin = self._twin(source, alive, kept)
            if twin is not None:
                for use in [u for u in source.uses() if u.node.op_type in SHAPE_ONLY]:
                    use.node.replace_input_with(use.idx, twin)
            elif source in continued:
                kept[source] = continued[source]
                reason = f"the length so far is read from {source.name}"
                done.still_computed[continued[source].name or ""] = reason
        return list(kept.values())

    def _twin(
        self, source: ir.Value, alive: Collection[ir.Node], kept: Collection[ir.Value]
    ) -> ir.Value | None:
        """Another input that the model says has the same shape, and that is still in use."""
        for value in self.graph.inputs:
            in_use = value in kept or (
                value not in self.owned and any(n in alive for n in value.consumers())
            )
            if value is not source and in_use and known_equal(source, value):
                return value
        return None


def _paired(
    outputs: Sequence[ir.Value], own: Sequence[ir.Value], branch: Branch, flow: Dataflow
) -> dict[ir.Value, ir.Value | None]:
    """Outputs, each with the first input that it depends on and that no other one took."""
    found: dict[ir.Value, ir.Value | None] = {}
    for output in outputs:
        found[output] = next(
            (
                v
                for v in own
                if v not in found.values()
                and v.dtype == output.dtype
                and output.producer() in flow.reached(v, branch.nodes, SHAPE_ONLY)
            ),
            None,
        )
    return found


def _is_state(value: ir.Value) -> bool:
    """Whether an input holds numbers that a run continues, rather than tokens or a mask."""
    rank = 3 if value.shape is None else value.shape.rank()
    return value.dtype in _FLOATS and rank >= 3


def _serves(value: ir.Value, nodes: Collection[ir.Node], flow: Dataflow) -> bool:
    """Whether only those nodes read it, apart from its shape."""
    readers = [n for n in flow.users(value) if n.op_type not in SHAPE_ONLY]
    return bool(readers) and all(n in nodes for n in readers)


def _alive(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that an output depends on."""
    flow = Dataflow(graph)
    return {node for output in graph.outputs for node in flow.ancestors(output)}
