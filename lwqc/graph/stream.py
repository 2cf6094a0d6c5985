"""What is known of a residual stream that can be put into other coordinates: data, no analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.axis_analysis import Use
from lwqc.graph.groups import Group
from lwqc.graph.linear_operand import Operand
from lwqc.model.weights import stored_tensor

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """A constant per channel behind a norm. operand: of the node that multiplies or adds it."""

    kind: Literal["gain", "bias"]
    node: ir.Node
    operand: int

    def vector(self) -> Vector:
        """[D]."""
        tensor = stored_tensor(self.node.inputs[self.operand])
        assert tensor is not None
        return tensor.numpy().astype(np.float64).ravel()


@dataclass(frozen=True, eq=False)
class Turn:
    """One axis of a stored tensor that is rotated.

    gain: what is multiplied into it first. use: the only reader whose view is rotated, where
    readers are looked at separately; None for all. centre: it loses its mean over the channels.
    reads: a layer reads the stream with it; what is not read is written into the stream.
    """

    value: ir.Value
    axis: int
    gain: tuple[Affine, ...] = ()
    use: Use | None = None
    centre: bool = False
    reads: bool = False


@dataclass(frozen=True, eq=False)
class Reading:
    """A linear layer that reads the stream, behind a norm with these constants if there is one."""

    operand: Operand
    affine: tuple[Affine, ...]
    turn: Turn


@dataclass(frozen=True, eq=False)
class Stream:
    """A residual stream that can be rotated.

    centre: what is added to the stream must have no mean, for there are layer norms.
    turns: stored tensors to rotate. readings: layers that take up gains and biases.
    tied: such layers that share their weight with an embedding: the constants become a matrix
    [D, D] in front of them. shared: layers without constants whose weight is also written into the
    stream. uncentred: embeddings of such weights, whose rows lose their mean when they are read.
    affine: constants to neutralise. layer_norms: to replace. subtractions: of a mean that is gone.
    states: tensor that carries the stream -> its axis. layers: that read it. sums: nodes
    that add over the channels where a norm takes the mean.
    """

    group: Group
    centre: bool
    turns: tuple[Turn, ...]
    readings: tuple[Reading, ...]
    tied: tuple[Reading, ...]
    shared: tuple[Reading, ...]
    uncentred: tuple[ir.Node, ...]
    affine: tuple[Affine, ...]
    layer_norms: tuple[ir.Node, ...]
    subtractions: tuple[ir.Node, ...]
    states: Mapping[ir.Value, int]
    layers: tuple[Operand, ...]
    sums: tuple[ir.Node, ...]
