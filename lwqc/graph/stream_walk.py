"""Follows a residual stream through a graph and collects what a rotation of it has to rewrite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import onnx_ir as ir

from lwqc.graph.axes import Factor
from lwqc.graph.axis_analysis import AxisAnalysis, Use
from lwqc.graph.groups import Group
from lwqc.graph.repairs import Indices
from lwqc.graph.stream import Affine, Reading, Stream, Turn
from lwqc.model.weights import is_float, stored_tensor

LINEAR = {("", "MatMul"), ("", "Gemm"), ("", "Conv")}  # their second operand is a weight


class FixedError(Exception):
    """Why a stream cannot be rotated."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What is known of a tensor that carries the stream.

    kind: `state` in stream coordinates; `constant`, stored and not yet used; `square`, elementwise;
    `weight`, which a linear layer reads. axis: of the stream. affine: what a state was multiplied
    with and got added since its norm. centred: a layer norm has taken its mean. parts: turns of
    all that adds up to a state which nothing else reads. source, stored_axis, use: of constants.
    """

    kind: Literal["state", "constant", "square", "weight"]
    axis: int
    affine: tuple[Affine, ...] = ()
    centred: bool = False
    parts: tuple[Turn, ...] = ()
    source: ir.Value | None = None
    stored_axis: int = 0
    use: Use | None = None

    @property
    def biased(self) -> bool:
        """Whether a bias is still to be folded."""
        return any(a.kind == "bias" for a in self.affine)


Frames = Sequence["Frame | None"]


@dataclass(eq=False)
class Walk:
    """Follows one group through the graph; raises FixedError where a rotation would not pass."""

    analysis: AxisAnalysis
    group: Group
    rules: Rules
    frames: dict[ir.Value, Frame] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    tables: dict[ir.Value, list[ir.Node]] = field(default_factory=dict)
    vectors: set[ir.Value] = field(default_factory=set)  # that each reader may see differently
    affine: dict[tuple[ir.Node, int], Affine] = field(default_factory=dict)
    layer_norms: list[ir.Node] = field(default_factory=list)
    subtractions: list[ir.Node] = field(default_factory=list)
    needs_mean: list[ir.Node] = field(default_factory=list)
    sums: list[ir.Node] = field(default_factory=list)
    neutral: set[ir.Value | None] = field(default_factory=set)  # gains of 1 that stay

    @property
    def factor(self) -> Factor:
        """The stream's channels."""
        return self.group.factor.find()

    @property
    def size(self) -> int:
        """Number of channels, D."""
        return self.group.size

    def stream(self) -> Stream:
        """All that a rotation rewrites."""
        for item in self.analysis.repairs:
            if isinstance(item, Indices) and self.axis_of([item.dimension], item.node) is not None:
                refuse(item.node, "picks channels by number")
        for node in self.analysis.graph:
            self.visit(node)
        centre = bool(self.layer_norms or self.subtractions)
        if centre and self.needs_mean:
            norm = (*self.layer_norms, *self.subtractions)[0]
            refuse(self.needs_mean[0], f"reads the stream with the mean that {where(norm)} drops")
        return self.resolved(centre)

    def resolved(self, centre: bool) -> Stream:
        """Gains of weights that several nodes read must agree, or be taken out of them."""
        by_value: dict[ir.Value, list[Turn]] = {}
        for turn in self.turns:
            by_value.setdefault(turn.value, []).append(turn)
        turns, tied, uncentred = list[Turn](), list[Reading](), list[ir.Node]()
        for value, here in by_value.items():
            if value.is_graph_output():
                raise FixedError(f"{value.name} is a graph output")
            if value in self.neutral:
                raise FixedError(f"{value.name} is also a gain")
            separate = [t for t in here if t.use is not None]
            if len(separate) < len(here) and value in self.vectors and len(value.uses()) > 1:
                raise FixedError(f"{value.name} is also read by other nodes")
            # Of a weight that is both, what is written stays: the layers that read it adapt.
            order = sorted(here, key=lambda t: not t.reads)
            merged = {(t.axis, _sources(t.gain), t.use): t for t in order}
            if separate or len({t.axis for t in merged.values()}) == len(merged):
                turns += (replace(t, centre=centre) for t in merged.values())
                continue
            turns.append(Turn(value, here[0].axis))
            tied += self.readings_of_table(value, here)
            uncentred += self.tables[value] if centre else []
        written = {(t.value, t.axis) for t in turns if not t.reads}
        return Stream(
            self.group,
            centre,
            tuple(turns),
            readings=tuple(r for r in self.readings if r.affine and r not in tied),
            tied=tuple(tied),
            shared=tuple(
                r for r in self.readings if not r.affine and (r.turn.value, r.turn.axis) in written
            ),
            uncentred=tuple(uncentred),
            affine=tuple(self.affine.values()),
            layer_norms=tuple(self.layer_norms),
            subtractions=tuple(self.subtractions),
            states={v: f.axis for v, f in self.frames.items() if f.kind == "state"},
            layers=tuple(r.operand for r in self.readings),
            sums=tuple(self.sums),
        )

    def readings_of_table(self, value: ir.Value, turns: Sequence[Turn]) -> list[Reading]:
        """Layers behind a gain or bias that read an embedding table as their weight."""
        readings = [r for r in self.readings if r.operand.weight.source is value]
        writers = [t for t in turns if all(t is not r.turn for r in readings)]
        last = [self.analysis.dims[n.outputs[0]][-1].find() for n in self.tables.get(value, ())]
        if (
            not last
            or any(t.gain for t in writers)
            or any(t.axis != turns[0].axis for t in turns)
            or any(factor is not self.factor for factor in last)
            or any(r.operand.node.op_type == "Conv" for r in readings)
        ):
            raise FixedError(f"{value.name} is read behind norms with different gains")
        return [r for r in readings if r.affine]

    def visit(self, node: ir.Node) -> None:
        """Let the node's rule say what becomes of the stream."""
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            return
        frames = [self.frame(node, i) for i in range(len(node.inputs))]
        carries = [
            self.axis_of(self.analysis.dims.get(output, ()), node) for output in node.outputs
        ]
        if not any(frames):
            if any(axis is not None for axis in carries):
                refuse(node, "makes channels of the stream from nothing")
            return
        rule = self.rules.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rule is None:
            refuse(node, "does not treat all directions of the stream alike")
        result = rule(self, node, frames)
        for output, axis in zip(node.outputs, carries, strict=True):
            if axis is not None:
                if result is None:
                    refuse(node, "does not treat all directions of the stream alike")
                alone = len(node.outputs) == len(output.uses()) == 1
                parts = result.parts if alone else ()
                self.frames[output] = replace(result, axis=axis, parts=parts)

    def axis_of(self, dims: Sequence[Factor], node: ir.Node) -> int | None:
        """The one axis that is the stream, None if none is; refuses what is only part of one."""
        axes = [a for a, d in enumerate(dims) if any(x is self.factor for x in d.leaves())]
        if not axes:
            return None
        if len(axes) > 1 or dims[axes[0]].find() is not self.factor:
            refuse(node, "mixes channels of the stream with other indices")
        return axes[0]

    def frame(self, node: ir.Node, index: int) -> Frame | None:
        """What an operand carries; None if it has nothing of the stream."""
        value = node.inputs[index]
        if value is None:
            return None
        tensor = stored_tensor(value)
        if tensor is None:
            return self.frames.get(value)
        use = Use(value, node, index)
        dims = self.analysis.operand(node, index) or []
        if index == 1 and (node.domain, node.op_type) in LINEAR:
            # It may have the stream on both axes: the layer's rule looks at them.
            found = any(leaf is self.factor for d in dims for leaf in d.leaves())
            return Frame("weight", 0) if found else None
        axis = self.axis_of(dims, node)
        if axis is None:
            return None
        if not is_float(tensor):
            refuse(node, f"reads {value.name}, which is stored as {tensor.dtype.name}")
        own = use if use in self.analysis.stored else None
        if own is not None:
            self.vectors.add(value)
        return Frame("constant", axis, source=value, stored_axis=axis, use=own)

    def settle(self, frame: Frame, node: ir.Node) -> Frame:
        """A constant becomes part of the stream: it is rotated where it is stored."""
        if frame.kind in ("square", "weight"):
            refuse(node, "takes channels of the stream one by one")
        if frame.kind == "state":
            return frame
        assert frame.source is not None
        turn = Turn(frame.source, frame.stored_axis, use=frame.use)
        self.turns.append(turn)
        return Frame("state", frame.axis, parts=(turn,))

    def pure(self, frame: Frame, node: ir.Node) -> Frame:
        """A state without constants that are still to be folded."""
        frame = self.settle(frame, node)
        if frame.affine:
            first = where(frame.affine[0].node)
            refuse(node, f"uses the stream behind the gain or bias of {first} (post-norm)")
        return frame

    def unbiased(self, frame: Frame, node: ir.Node) -> Frame:
        """A state that may be scaled and summed."""
        frame = self.settle(frame, node)
        if frame.biased:
            refuse(node, "scales the stream between a norm's bias and the layer that reads it")
        return frame

    def with_affine(
        self, frame: Frame, kind: Literal["gain", "bias"], node: ir.Node, operand: int
    ) -> Frame:
        """A state times or plus a stored vector."""
        tensor = stored_tensor(node.inputs[operand])
        if tensor is None or tensor.size != self.size:
            refuse(node, f"has a {kind} that is no constant per channel")
        found = self.affine.get((node, operand)) or Affine(kind, node, operand)
        if (found.vector() == (1.0 if kind == "gain" else 0.0)).all():
            value = node.inputs[operand]
            if kind == "gain" and value in self.analysis.stored:  # all readers get the same
                self.neutral.add(value)
            return frame
        self.affine[node, operand] = found
        if kind == "gain" and frame.parts:
            return replace(frame, parts=self.scaled(frame.parts, found))
        return replace(frame, affine=(*frame.affine, found))

    def scaled(self, parts: tuple[Turn, ...], gain: Affine) -> tuple[Turn, ...]:
        """A gain on the way into the stream (layer scale) goes into what is scaled."""
        new = {part: replace(part, gain=(*part.gain, gain)) for part in parts}
        self.turns = [new.get(turn, turn) for turn in self.turns]
        return tuple(new.values())


def where(node: ir.Node) -> str:
    """A node in words."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def refuse(node: ir.Node, reason: str) -> NoReturn:
    """Raise FixedError: the stream cannot be rotated because of this node."""
    raise FixedError(f"{where(node)}: {reason}")


def _sources(affine: tuple[Affine, ...]) -> tuple[ir.Value | None, ...]:
    return tuple(a.node.inputs[a.operand] for a in affine)


Rule = Callable[[Walk, ir.Node, Frames], "Frame | None"]
Rules = Mapping[tuple[str, str], Rule]
