"""Which tensors of a compressed model cost the output error, from one instrumented run.

Both models run side by side. Where the compressed one computes a tensor otherwise, the original's
own nodes are also run on what the compressed model gives them:

    y_B - y_A  =  (y_B - op_A(x_B))  +  (op_A(x_B) - op_A(x_A))
      error    =     introduced      +       inherited

The squared error at the outputs is then followed upstream. At each tensor the part that would go
away if the original's nodes computed it, 1 - |inherited|^2 / |error|^2, stays; the rest goes to the
inputs, in proportion to the squared norm of what each alone does to the tensor. So blame is
conserved: the shares of all tensors add up to 1. What lies downstream is assumed to treat errors
of different origin alike, so a share is an estimate; `repaired` checks a suspect by experiment.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.counterparts import Counterparts, Step
from lwqc.graph.linear_operand import linear_operand
from lwqc.graph.value_types import infer_types
from lwqc.model.tensor_bytes import read_array
from lwqc.model.unused import RemoveUnused
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.collector import Feeds, RunnerFactory
from lwqc.runtime.stats.relative_error import ErrorSum, RelativeError
from lwqc.runtime.stats.shapes import Shapes
from lwqc.runtime.stats.side_by_side import PREFIX, side_by_side

REPLAY = "lwqc.replay/"  # the original's nodes on what the compressed model gives them
_MIXED = "lwqc.mixed"  # the original's nodes with one input from the compressed model
_ADDITIVE = {"Add", "Sub", "Sum", "Concat"}  # errors of their inputs appear as they are
_UNDONE = 0.1  # a step that leaves less of its parts' errors than this takes a basis back
_FAR = 0.5  # relative error from which a neighbour of such a tensor is in that basis too
_ROUNDING = 1e-6  # relative error, and part of squared values, below which nothing differs
_OPPOSED = -0.1  # correlation of introduced and inherited error below which the same is assumed
_CARRIES = 0.25  # part of a tensor's error from which an input carries it
_BASIS_ROUNDS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Suspect:
    """A tensor that the compressed model computes otherwise.

    tensor, operator, weights: in the original. relative_error: rms error over rms value.
    introduced: the same of the part that arises here, the whole where `separable` is False. share:
    of the squared output error, 0..1.
    """

    tensor: str
    operator: str
    weights: tuple[str, ...]
    relative_error: float
    introduced: float
    share: float
    separable: bool


@dataclass(frozen=True)
class Blame:
    """suspects: largest share first. outputs: relative error by output. excluded: tensor, reason.

    passes: runs over the data that it took.
    """

    suspects: tuple[Suspect, ...]
    outputs: Mapping[str, float]
    excluded: tuple[tuple[str, str], ...]
    passes: int

    @property
    def is_exact(self) -> bool:
        """Whether the outputs differ by rounding at most."""
        return all(error <= _ROUNDING for error in self.outputs.values())


@dataclass(frozen=True)
class _Measured:
    """Errors by tensor; via: by tensor and input, of that input alone."""

    total: Mapping[str, ErrorSum]
    introduced: Mapping[str, float]
    inherited: Mapping[str, float]
    via: Mapping[tuple[str, str], float]


class Comparison:
    """An original model and a compressed one, matched by the names of their tensors."""

    def __init__(
        self,
        original: ir.Model,
        compressed: ir.Model,
        data: Iterable[Feeds],
        make_runner: RunnerFactory,
    ) -> None:
        """Match the models, looking at the shapes that the first feeds give.

        data: re-iterable. Raises InputError when the models' inputs, outputs or opsets differ.
        """
        _check(original, compressed)
        self._data, self._make_runner = data, make_runner
        self._original = original.clone()
        infer_types(self._original)
        self._compressed = compressed
        self._counterparts = Counterparts(self._original, compressed, read_array)
        self.excluded: dict[str, str] = {}
        self._sizes = self._match()

    def blame(self, *, pass_bytes: int = 1 << 30, progress: Progress | None = None) -> Blame:
        """Rank the tensors that the compressed model computes otherwise.

        pass_bytes: of tensors that one pass over the data compares; more take more passes.
        """
        measured, passes = self._measure(self._data, pass_bytes, progress)
        if self._exclude_bases(measured):
            self._settle_bases()
            measured, more = self._measure(self._data, pass_bytes, progress)
            passes += more
        shares = _shares(self.steps, self.outputs, measured)
        suspects = [
            Suspect(
                step.output,
                step.operator,
                step.weights,
                measured.total[step.output].relative,
                ErrorSum(measured.introduced[step.output], measured.total[step.output].signal)
                .relative,
                shares[step.output],
                not step.barrier,
            )
            for step in self.steps
            if step.changed
        ]  # fmt: skip
        suspects.sort(key=lambda s: (-s.share, -s.introduced))
        outputs = {n: _relative(measured.total.get(n)) for n in self.outputs}
        return Blame(tuple(suspects), outputs, tuple(self.excluded.items()), passes)

    def repaired(self, tensor: str) -> ir.Model:
        """The compressed model with one suspect computed by the original's nodes and weights."""
        step = {s.output: s for s in self.steps}[tensor]
        if step.barrier:
            raise InputError(f"{tensor}: {step.barrier}; its part cannot be exchanged")
        joined, values = self._joined()
        outputs = [values[PREFIX + name] for name in self.outputs]
        fixed = _Replay(joined, values).on_compressed(step)
        values[PREFIX + tensor].replace_all_uses_with(fixed, replace_graph_outputs=True)
        joined.graph.outputs[:] = [fixed if v is values[PREFIX + tensor] else v for v in outputs]
        joined.graph.sort()
        RemoveUnused()(joined)
        for name, value in zip(self.outputs, joined.graph.outputs, strict=True):
            value.name = name
        return joined

    @property
    def outputs(self) -> list[str]:
        """Float outputs of the original."""
        return [v.name or "" for v in self._original.graph.outputs if v.name in self._sizes]

    @cached_property
    def steps(self) -> list[Step]:
        """Steps between tensors that can be compared and that a change can have reached."""
        touched: set[str] = set()
        steps = []
        for step in self._counterparts.steps(self._sizes.keys() - self.excluded.keys()):
            if step.changed or not touched.isdisjoint(step.inputs):
                touched.add(step.output)
                steps.append(step)
        return steps

    def _match(self) -> dict[str, int]:
        """Bytes of each tensor that both models have in the same shape; others are excluded."""
        names = self._counterparts.names
        joined, _ = self._joined()
        collectors = [(Shapes(n), Shapes(PREFIX + n)) for n in names]
        flat = [c for pair in collectors for c in pair]
        seen = collect(joined, flat, self._first(), self._make_runner)
        sizes = {}
        for name, (mine, other) in zip(names, collectors, strict=True):
            before, after = seen[mine].last, seen[other].last
            if before == after:
                sizes[name] = 4 * math.prod(before)
            else:
                self.excluded[name] = f"its shape is {list(after)}, in the original {list(before)}"
        for value in self._original.graph.outputs:
            if value.name in self.excluded:
                raise InputError(f"output {value.name}: {self.excluded[value.name]}")
        return sizes

    def _settle_bases(self) -> None:
        """Exclude more tensors, looking at the first feeds, until none is in a basis of its own."""
        for _ in range(_BASIS_ROUNDS):
            measured, _ = self._measure(self._first(), 1 << 62, None)
            if not self._exclude_bases(measured):
                return

    def _exclude_bases(self, measured: _Measured) -> bool:
        """Exclude tensors that the compressed model scales or rotates, and takes back later.

        Scale migration and rotation change what a tensor means, not what the model computes.
        """
        found = _other_bases(self.steps, measured) - set(self.outputs)
        reason = "its values are scaled or rotated, which later weights take back"
        self.excluded.update(dict.fromkeys(sorted(found), reason))
        if found:
            del self.steps
        return bool(found)

    def _first(self) -> list[Feeds]:
        return list(islice(self._data, 1))

    def _joined(self) -> tuple[ir.Model, dict[str, ir.Value]]:
        """Both models in one, and its values by name."""
        joined = side_by_side(self._original, self._compressed)
        joined.ir_version = max(self._original.ir_version, self._compressed.ir_version)
        graph = joined.graph
        values = [*graph.initializers.values(), *graph.inputs]
        values += [v for node in graph for v in node.outputs]
        return joined, {v.name: v for v in values if v.name}

    def _measure(
        self, data: Iterable[Feeds], pass_bytes: int, progress: Progress | None
    ) -> tuple[_Measured, int]:
        """Errors of all steps, and how many passes they took."""
        joined, values = self._joined()
        plan = _MeasuringPlan(self.steps, _Replay(joined, values))
        batches = list(_batches(plan.collectors, self._sizes, pass_bytes))
        found: dict[RelativeError, ErrorSum] = {}
        for done, batch in enumerate(batches):
            if progress is not None:
                progress(done, len(batches))
            statistics = collect(joined, batch, data, self._make_runner)
            found |= {collector: statistics[collector] for collector in batch}
        return plan.read(found), len(batches)


def _check(original: ir.Model, compressed: ir.Model) -> None:
    ours, theirs = ([v.name for v in m.graph.outputs] for m in (original, compressed))
    if missing := [str(n) for n in ours if n not in theirs]:
        raise InputError(
            f"the compressed model has no output {', '.join(missing)}: it has {theirs}"
        )
    for domain, version in compressed.opset_imports.items():
        if original.opset_imports.get(domain, version) != version:
            raise InputError(
                f"the models import opsets {original.opset_imports[domain]} and {version} of "
                f"{domain or 'ai.onnx'}; blame needs one: convert the original first"
            )


def _relative(error: ErrorSum | None) -> float:
    return 0.0 if error is None else error.relative


class _Replay:
    """Appends copies of the original's nodes that read the compressed model's tensors."""

    def __init__(self, joined: ir.Model, values: Mapping[str, ir.Value]) -> None:
        self._graph, self._values = joined.graph, values
        self._copied: dict[str, ir.Value] = {}

    def on_compressed(self, step: Step) -> ir.Value:
        """`step` on what the compressed model gives it."""
        return self._copy(step, REPLAY, {n: self._values[PREFIX + n] for n in step.inputs})

    def through(self, step: Step, name: str) -> str:
        """`step` with one input of the compressed model and the original's others."""
        prefix = f"{_MIXED}/{step.inputs.index(name)}/{step.output}/"
        return self._copy(step, prefix, {name: self._values[PREFIX + name]}).name or ""

    def _copy(self, step: Step, prefix: str, bound: Mapping[str, ir.Value]) -> ir.Value:
        local = dict(bound)
        for node in step.nodes:
            names = [v.name or "" for v in node.inputs if v is not None]
            if not any(n in local or prefix + n in self._copied for n in names):
                continue  # what does not depend on them is the original's own
            self._copy_node(node, prefix, local)
        copied = self._copied.get(prefix + step.output)
        return copied if copied is not None else self._values[step.output]

    def _copy_node(self, node: ir.Node, prefix: str, local: Mapping[str, ir.Value]) -> None:
        if all(prefix + (v.name or "") in self._copied for v in node.outputs if v.name):
            return
        inputs = [None if v is None else self._bind(v.name or "", prefix, local)
                  for v in node.inputs]  # fmt: skip
        outputs = [
            ir.Value(name=prefix + v.name if v.name else "", type=v.type) for v in node.outputs
        ]
        attributes = list(node.attributes.values())
        copy = ir.Node(
            node.domain, node.op_type, inputs, attributes, overload=node.overload,
            outputs=outputs, version=node.version, name=f"{prefix}{node.outputs[0].name}",
        )  # fmt: skip
        self._graph.append(copy)
        self._copied.update((v.name, v) for v in outputs if v.name)

    def _bind(self, name: str, prefix: str, local: Mapping[str, ir.Value]) -> ir.Value:
        if name in local:
            return local[name]
        return self._copied.get(prefix + name, self._values[name])


class _MeasuringPlan:
    """Which pairs of tensors to compare, and what their errors mean."""

    def __init__(self, steps: Sequence[Step], replay: _Replay) -> None:
        self._steps = steps
        self._reached = {step.output for step in steps}
        self._total = {s.output: RelativeError(s.output, PREFIX + s.output) for s in steps}
        self._introduced: dict[str, RelativeError] = {}
        self._inherited: dict[str, RelativeError] = {}
        self._via: dict[tuple[str, str], RelativeError] = {}
        for step in steps:
            if step.barrier:
                continue
            if step.changed and self.inputs(step):
                redone = replay.on_compressed(step).name or ""
                self._introduced[step.output] = RelativeError(PREFIX + step.output, redone)
                self._inherited[step.output] = RelativeError(step.output, redone)
            if len(self.inputs(step)) > 1:
                for name in self.inputs(step):
                    self._via[step.output, name] = self._alone(step, name, replay)

    def inputs(self, step: Step) -> list[str]:
        """Inputs that can be wrong."""
        return [name for name in step.inputs if name in self._reached]

    def _alone(self, step: Step, name: str, replay: _Replay) -> RelativeError:
        if len(step.nodes) == 1 and step.nodes[0].op_type in _ADDITIVE:
            return self._total[name]
        return RelativeError(step.output, replay.through(step, name))

    @property
    def collectors(self) -> list[RelativeError]:
        """All of them, those of one step together."""
        grouped: dict[str, list[RelativeError]] = defaultdict(list)
        for part in (self._total, self._introduced, self._inherited):
            for name, collector in part.items():
                grouped[name].append(collector)
        for (name, _), collector in self._via.items():
            grouped[name].append(collector)
        return list(dict.fromkeys(c for step in self._steps for c in grouped[step.output]))

    def read(self, found: Mapping[RelativeError, ErrorSum]) -> _Measured:
        """Errors from the statistics of `collectors`."""
        total = {name: found[c] for name, c in self._total.items()}
        introduced = {s.output: total[s.output].error for s in self._steps if s.changed}
        introduced |= {name: found[c].error for name, c in self._introduced.items()}
        inherited = {name: found[c].error for name, c in self._inherited.items()}
        via = {key: found[c].error for key, c in self._via.items()}
        for step in self._steps:  # where nothing could be separated, inputs count as they are
            if step.barrier:
                for name in self.inputs(step):
                    via[step.output, name] = total[name].relative ** 2
        return _Measured(total, introduced, inherited, via)


def _batches(
    collectors: Sequence[RelativeError], sizes: Mapping[str, int], pass_bytes: int
) -> Iterator[list[RelativeError]]:
    batch: list[RelativeError] = []
    held = 0
    for collector in collectors:
        needed = 2 * sizes[collector.reference.removeprefix(PREFIX)]
        if batch and held + needed > pass_bytes:
            yield batch
            batch, held = [], 0
        batch.append(collector)
        held += needed
    if batch:
        yield batch


def _shares(steps: Sequence[Step], outputs: Sequence[str], measured: _Measured) -> dict[str, float]:
    """Share of the output error by tensor; outputs count by their squared relative error."""
    reached = {step.output for step in steps}
    wrong = [name for name in outputs if name in reached]
    flow: dict[str, float] = defaultdict(float)
    weights = _proportions([measured.total[n].relative ** 2 for n in wrong])
    for name, weight in zip(wrong, weights, strict=True):
        flow[name] += weight
    shares: dict[str, float] = defaultdict(float)
    for step in reversed(steps):
        arrived = flow[step.output]
        if arrived == 0:
            continue
        inputs = [name for name in step.inputs if name in reached]
        own = _own_share(step, inputs, measured)
        errors = [measured.via.get((step.output, n), 1.0) for n in inputs]
        passed = _proportions(errors)
        if not any(passed):
            own = 1.0
        shares[step.output] += arrived * own
        for name, part in zip(inputs, passed, strict=True):
            flow[name] += arrived * (1 - own) * part
    return shares


def _own_share(step: Step, inputs: Sequence[str], measured: _Measured) -> float:
    """How much of a tensor's error arises there."""
    if not step.changed:
        return 0.0
    if not inputs or step.barrier:
        return 1.0
    inherited, error = measured.inherited[step.output], measured.total[step.output].error
    if not math.isfinite(inherited):
        return 0.0  # NaN came in
    return max(0.0, 1 - inherited / error) if error > 0 else 0.0


def _proportions(errors: Sequence[float]) -> list[float]:
    """Parts of 1; all 0 when there is no error."""
    if not all(map(math.isfinite, errors)):
        errors = [0.0 if math.isfinite(e) else 1.0 for e in errors]
    total = sum(errors)
    return [e / total if total > 0 else 0.0 for e in errors]


def _other_bases(steps: Sequence[Step], measured: _Measured) -> set[str]:
    """Tensors whose errors a later step takes back, with all that carries these errors there."""
    by_output = {s.output: s for s in steps}
    near = _far_neighbours(steps, measured)
    found = [n for step in steps for n in _taken_back(step, by_output, measured)]
    bases: set[str] = set()
    while found:
        name = found.pop()
        if name not in bases:
            bases.add(name)
            found += near[name]
            if not by_output[name].changed:  # then the basis was changed further up
                found += _carriers(by_output[name], by_output, measured)
    return bases


def _far_neighbours(steps: Sequence[Step], measured: _Measured) -> dict[str, set[str]]:
    """Tensors next to each other that are both far off: a rotated residual stream."""
    far = {s.output for s in steps if measured.total[s.output].relative > _FAR}
    near: dict[str, set[str]] = defaultdict(set)
    for step in steps:
        for name in far.intersection(step.inputs) if step.output in far else ():
            near[name].add(step.output)
            near[step.output].add(name)
    return near


def _carriers(step: Step, known: Mapping[str, Step], measured: _Measured) -> list[str]:
    """Inputs that most of a tensor's error comes through."""
    inputs = [n for n in step.inputs if n in known]
    parts = _proportions([measured.via.get((step.output, n), 1.0) for n in inputs])
    return [name for name, part in zip(inputs, parts, strict=True) if part >= _CARRIES]


def _taken_back(step: Step, known: Mapping[str, Step], measured: _Measured) -> list[str]:
    """Inputs whose error the step undoes: it introduces the opposite of what it inherits.

    When hardly anything is left that is all inputs. Where rounding hides it, a correlation does for
    norms and elementwise steps: these are changed to move scales, and seldom for anything else.
    Products are not, as rounding and compensation make them correlated too.
    """
    if step.output not in measured.inherited:
        return []
    introduced, inherited = measured.introduced[step.output], measured.inherited[step.output]
    total = measured.total[step.output]
    if not inherited > _ROUNDING * total.signal or not math.isfinite(introduced + inherited):
        return []
    inputs = [n for n in step.inputs if n in known]
    if total.error < _UNDONE * (introduced + inherited):
        return inputs
    dot = (total.error - introduced - inherited) / 2
    if dot < _OPPOSED * math.sqrt(introduced * inherited):
        return [n for n in inputs if known[n].changed and not _multiplies(known[n])]
    return []


def _multiplies(step: Step) -> bool:
    return any(linear_operand(node) is not None for node in step.nodes)
