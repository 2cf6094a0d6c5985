"""Small models written node by node, for tests of operator rules: `Small`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.rules import RULES
from lwqc.graph.rules.context import Rules
from lwqc.graph.sampled import Sampled
from lwqc.runtime.session import Session, SessionSettings

Array = NDArray[Any]


@dataclass
class Small:
    """A graph while it is written; names are given by the caller or numbered."""

    opset: int = 20
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, Array] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def input(self, *shape: int | tuple[str, int], name: str = "x") -> str:
        """Noise for a graph input; a dimension (symbol, size) is dynamic."""
        sizes = [d if isinstance(d, int) else d[1] for d in shape]
        return self.given(name, self.rng.standard_normal(sizes, dtype=np.float32), shape)

    def given(
        self, name: str, value: Array, shape: Sequence[int | tuple[str, int]] | None = None
    ) -> str:
        """A graph input with a value."""
        dims = [d if isinstance(d, int) else d[0] for d in shape or value.shape]
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        self.feeds[name] = value
        return name

    def weight(self, *shape: int, name: str = "", std: float = 0.0) -> str:
        """Stored noise; scaled so that a product keeps the size of its operand."""
        fan = np.prod(shape[1:]) if len(shape) > 2 else shape[0] if len(shape) > 1 else 4
        scale = std or float(fan) ** -0.5
        return self.keep((scale * self.rng.standard_normal(shape)).astype(np.float32), name)

    def gains(self, *shape: int, name: str = "") -> str:
        """Stored positive numbers."""
        return self.keep(self.rng.uniform(0.5, 1.5, shape).astype(np.float32), name)

    def ints(self, *values: int, name: str = "") -> str:
        """A stored list."""
        return self.keep(np.asarray(values, np.int64), name)

    def keep(self, value: Array | onnx.TensorProto, name: str = "") -> str:
        """Store a tensor."""
        name = name or f"w{len(self.stored)}"
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value)
        tensor.name = name
        self.stored[name] = tensor
        return name

    def op(self, kind: str, *used: str, domain: str = "", name: str = "", **rest: Any) -> str:
        """A node with one output; an input "" is left out."""
        return self.ops(kind, *used, domain=domain, names=[name], **rest)[0]

    def ops(
        self, kind: str, *used: str, names: Sequence[str], domain: str = "", **rest: Any
    ) -> list[str]:
        """A node with one output per name; "" is numbered, "-" left out."""
        number = len(self.nodes)
        made = ["" if n == "-" else n or f"{kind}{number}_{i}" for i, n in enumerate(names)]
        node = helper.make_node(kind, used, made, f"{kind}{number}", domain=domain, **rest)
        self.nodes.append(node)
        return made

    def linear(self, x: str, inner: int, outer: int, name: str = "") -> str:
        """`x: [..., inner] -> [..., outer]`, weight `name`."""
        return self.op("MatMul", x, self.weight(inner, outer, name=name))

    def build(self, *outputs: str) -> onnx.ModelProto:
        """A model that runs; every intermediate shape that ONNX can infer is recorded."""
        return with_output_types(self.bare(*outputs), self.feeds)

    def bare(self, *outputs: str) -> onnx.ModelProto:
        """A model without any inferred type."""
        used = {name for node in self.nodes for name in node.input} | set(outputs)
        domains = {node.domain: 1 for node in self.nodes} | {"": self.opset}
        graph = helper.make_graph(
            self.nodes,
            "small",
            self.inputs,
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [tensor for name, tensor in self.stored.items() if name in used],
        )
        opsets = [helper.make_opsetid(*d) for d in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def with_output_types(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """Outputs get the type and rank that a run shows, then inference adds what it knows."""
    found = run(model, feeds)
    for output in model.graph.output:
        value = found[output.name]
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        names = [f"{output.name}_{i}" for i in range(value.ndim)]
        output.CopyFrom(helper.make_tensor_value_info(output.name, dtype, names))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs without graph optimisation."""
    session = Session(ir.from_proto(model), SessionSettings(optimize=False), label="small")
    return session(feeds)


def measured_shapes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Sampled]:
    """Every tensor's shape from a run, for operators that ONNX's inference does not know."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    made = [name for node in model.graph.node for name in node.output if name]
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    sizes = {name: value.shape for name, value in {**feeds, **run(wide, feeds)}.items()}
    return {name: Sampled(tuple(s), tuple(s)) for name, s in sizes.items()}


def groups_of(small: Small, *outputs: str, rules: Rules = RULES) -> tuple[ir.Model, Groups]:
    """The model and its groups, with shapes from a run."""
    proto = small.build(*outputs)
    model = ir.from_proto(proto)
    return model, find_groups(model, measured_shapes(proto, small.feeds), rules=rules)
