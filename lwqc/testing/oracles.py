"""What must hold for every group: permutation, zeroed equals removed, commutation.

The stored tensors that groups touch become inputs of one session, so a trial costs one run. The
tolerance is ten times the change that one-ulp changes of the float weights cause, and each oracle
comes with a control that must fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.axes import Factor
from lwqc.graph.axis_analysis import AxisAnalysis
from lwqc.graph.groups import Group, Groups, find_groups
from lwqc.graph.repairs import Indices
from lwqc.graph.rules import RULES
from lwqc.graph.rules.context import Rules
from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import declared_shapes
from lwqc.model.edit import add_initializer
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import is_float, stored_tensor
from lwqc.passes.prune_channels import empties, prune_channels
from lwqc.passes.strided_reshape import strided_to_reshape
from lwqc.runtime.session import Session, SessionSettings
from lwqc.testing.reordering import Reordering, order_of

Array = NDArray[Any]
Feeds = Mapping[str, Array]
_ZERO_POINTS = {"DequantizeLinear": 2, "MatMulInteger": 3, "MatMulIntegerToFloat": 5}
_WIDER = {ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.UINT8}
FLOOR = 1e-6  # outputs of different summation order differ by this much at least


@dataclass
class Oracle:
    """One model under test. feeds: inputs. tolerance: relative to the largest output."""

    model: ir.Model
    groups: Groups
    feeds: Feeds
    tolerance: float = 0.0
    rules: Rules = field(default_factory=lambda: RULES)

    def __post_init__(self) -> None:
        """Measure the model's own noise."""
        analysis = self.groups.analysis
        self._keys = {
            key: (key if isinstance(key, ir.Value) else key.value) for key in analysis.stored
        }
        self._names: dict[Any, str] = {}
        self._base: dict[str, Array] = {}
        self._run = self._lifted()
        self.reference = self._run({**self.feeds, **self._base})
        if not self.tolerance:
            self.tolerance = max(FLOOR, 10 * max(self._noise(seed) for seed in range(2)))

    def _lifted(self) -> Session:
        """A session whose inputs include every stored tensor that a group touches."""
        touched = {o.operand or o.value for group in self.groups for o in group.occurrences} | {
            key
            for key in self._keys
            for item in self.groups.analysis.repairs
            if isinstance(item, Indices)
            and not isinstance(key, ir.Value)
            and key.node is item.node
            and key.index == item.operand
        }
        model = self.model.clone()
        values = {v.name: v for v in model.graph.initializers.values()}
        values |= {o.name: o for node in model.graph for o in node.outputs}
        nodes = dict(zip(self.model.graph, model.graph, strict=True))
        for number, key in enumerate(k for k in self._keys if k in touched):
            value = self._keys[key]
            name = f"oracle/{number}"
            tensor = stored_tensor(value)
            assert tensor is not None
            array, dtype = tensor.numpy(), tensor.dtype
            if dtype in _WIDER:  # a session takes no 4-bit inputs
                dtype = _WIDER[dtype]
                array = array.astype(dtype.numpy())
            lifted = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
            model.graph.inputs.append(lifted)
            if dtype != tensor.dtype:
                cast = ir.node("Cast", [lifted], {"to": int(tensor.dtype)})
                model.graph.insert_before(model.graph[0], cast)
                lifted = cast.outputs[0]
            if isinstance(key, ir.Value):
                values[value.name].replace_all_uses_with(lifted, replace_graph_outputs=True)
            else:
                nodes[key.node].replace_input_with(key.index, lifted)
            self._names[key] = name
            self._base[name] = array
        RemoveUnused()(model)
        return session(model)

    def _noise(self, seed: int) -> float:
        rng = np.random.default_rng(seed)
        moved = dict(self._base)
        for name in self._names.values():
            array = self._base[name]
            if array.dtype.kind == "f" and array.ndim > 1:
                direction = np.where(rng.integers(0, 2, array.shape) > 0, np.inf, -np.inf)
                moved[name] = np.nextafter(array, direction.astype(array.dtype))
        return difference(self.reference, self._run({**self.feeds, **moved}))

    def permutation(self, groups: Iterable[Group], seed: int = 0) -> float:
        """Error after reordering the indices of groups wherever they occur."""
        orders = self._orders(groups, seed)
        return difference(self.reference, self._run({**self.feeds, **self.permuted(orders)}))

    def _orders(self, groups: Iterable[Group], seed: int) -> dict[Factor, NDArray[np.intp]]:
        rng = np.random.default_rng(seed)
        return {g.factor: _shuffled(rng, g.size) for g in groups}

    def permuted(self, orders: Mapping[Factor, NDArray[np.intp]]) -> dict[str, Array]:
        """Stored tensors with reordered axes; tables of indices are renumbered."""
        analysis = self.groups.analysis
        moves = {
            key: Reordering.of(key, analysis.stored[key], analysis.repairs, orders)
            for key in self._names
        }
        return {name: moves[key].apply(self._base[name]) for key, name in self._names.items()}

    def control(self, group: Group, seed: int = 0) -> float:
        """Error when only the first weight of a group is reordered: must be large."""
        orders = self._orders([group], seed)
        occurrence = group.weights[0]
        key = occurrence.operand or occurrence.value
        name = self._names[key]
        order = order_of(occurrence.dimension, orders)
        moved = {name: np.take(self._base[name], order, occurrence.axis)}
        return difference(self.reference, self._run({**self.feeds, **self._base, **moved}))

    def zeroed_is_removed(self, removed: Mapping[str, Sequence[int]]) -> float:
        """Difference between the pruned model and the model with the same slices set to zero."""
        zeroed = dict(self._base)
        for name, indices in removed.items():
            group = self.groups.by_name[name]
            for occurrence in group.weights:
                key = self._names[occurrence.operand or occurrence.value]
                gone = np.flatnonzero(np.isin(group.owner(occurrence), list(indices)))
                array = zeroed[key].copy()
                array[(slice(None),) * occurrence.axis + (gone,)] = self._zero(occurrence.value)
                zeroed[key] = array
        expected = self._run({**self.feeds, **zeroed})
        return difference(expected, self.pruned(removed))

    def possible(self, removed: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """The part of a removal that leaves every axis something, taken group by group."""
        taken: dict[str, list[int]] = {}
        for name, indices in removed.items():
            trial = {**taken, name: list(indices)}
            if not empties(self.groups, trial):
                taken = trial
        return taken

    def _zero(self, value: ir.Value) -> Any:
        tensor = stored_tensor(value)
        assert tensor is not None
        if is_float(tensor):
            return 0
        for use in value.uses():
            operand = _ZERO_POINTS.get(use.node.op_type, len(use.node.inputs))
            if operand < len(use.node.inputs) and (zero := stored_tensor(use.node.inputs[operand])):
                return zero.numpy().ravel()[0]
        return 0

    def pruned(
        self, removed: Mapping[str, Sequence[int]], weights: Feeds | None = None
    ) -> dict[str, Array]:
        """Outputs of the model with channels removed, its stored tensors replaced first."""
        model = self.model.clone()
        again = find_groups(model, self.groups.analysis.shapes, rules=self.rules)
        if weights is not None:
            self._store(again.analysis, weights)
        prune_channels(again, removed)
        RemoveUnused()(model)
        return session(model)(self.feeds)

    def _store(self, analysis: AxisAnalysis, weights: Feeds) -> None:
        """Replace stored tensors of a clone; each reader of a shared one gets its own."""
        for ours, key in zip(self._keys, list(analysis.stored), strict=True):
            name = self._names.get(ours)
            if name is None or name not in weights:
                continue
            value = key if isinstance(key, ir.Value) else key.value
            old = stored_tensor(value)
            assert old is not None
            tensor = ir.tensor(weights[name].astype(old.dtype.numpy()), old.dtype, name=name)
            if isinstance(key, ir.Value) and (producer := value.producer()) is not None:
                producer.attributes["value"] = ir.AttrTensor("value", tensor)
            elif isinstance(key, ir.Value):
                value.const_value = tensor
            else:
                alone = add_initializer(analysis.graph, tensor)
                key.node.replace_input_with(key.index, alone)
                analysis.stored[alone] = analysis.stored.pop(key)

    def commutation(self, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> float:
        """Difference between pruning K, and reordering by p and then pruning p(K)."""
        orders = self._orders(groups, seed=5)
        moved = {
            name: np.flatnonzero(np.isin(orders[self.groups.by_name[name].factor], list(indices)))
            for name, indices in removed.items()
        }
        there = {name: [int(i) for i in indices] for name, indices in moved.items()}
        return difference(self.pruned(removed), self.pruned(there, self.permuted(orders)))


def session(model: ir.Model) -> Session:
    """Without graph optimisation: fusions of ONNX Runtime 1.31 change values (Pad with MaxPool)."""
    return Session(model, SessionSettings(optimize=False), label="oracle")


def difference(a: Feeds, b: Feeds) -> float:
    """Largest difference, relative to the largest value of the output."""
    worst = 0.0
    for name, x in a.items():
        y = b[name]
        if x.dtype.kind == "f":
            if x.shape != y.shape:
                return float("inf")
            scale = float(np.abs(x).max(initial=0.0)) or 1.0
            gap = np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(gap) / scale)
        elif not np.array_equal(x, y):
            return float("inf")
    return worst


def half(groups: Iterable[Group], seed: int = 0, share: float = 0.5) -> dict[str, list[int]]:
    """A random part of the indices of each group, never all."""
    rng = np.random.default_rng(seed)
    return {
        g.name: sorted(int(i) for i in rng.permutation(g.size)[: max(1, int(g.size * share))])
        for g in groups
        if g.size > 1
    }


def _shuffled(rng: np.random.Generator, size: int) -> NDArray[np.intp]:
    """A permutation; two indices always change places."""
    return rng.permutation(size) if size > 2 else np.arange(size)[::-1]


def prepared(model: ir.Model, rules: Rules = RULES) -> tuple[ir.Model, Groups, dict[str, Sampled]]:
    """A model after the rewrites that the analysis wants, its groups, and the shapes."""
    shapes, _ = declared_shapes(model)
    if strided_to_reshape(model, shapes):
        shapes, _ = declared_shapes(model)
    return model, find_groups(model, shapes, rules=rules), shapes
