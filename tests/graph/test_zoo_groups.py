"""Groups of every architecture of the zoo and of the shipped models: pinned, and all oracles hold.

Oracles see missing coupling but never an axis that is frozen without need, so the number of groups
and the share of weights that can shrink are pinned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.graph.axes import Factor, is_free
from lwqc.graph.groups import Groups
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import is_float, stored_tensor
from lwqc.passes.prune_channels import prune_channels
from lwqc.testing.oracles import Array, Feeds, Oracle, half, prepared
from tests.conftest import ALL, ZOO
from tests.zoo.materialize import materialize, sample_inputs

MODELS = Path(__file__).parent.parent.parent / "models"
SHIPPED = [
    MODELS.parent / "lwqc/cli/demo/digits.onnx",
    *sorted(p for p in MODELS.glob("*.onnx") if p.stem != "minilm"),
]
_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2)}
_WEIGHTS |= {"MatMul": (0, 1), "Gemm": (0, 1)}


@dataclass(frozen=True)
class Pin:
    """covered, both: share of linear weights of which any, the first two axes can shrink."""

    groups: int
    statistics: int
    units: int
    covered: float
    both: float


PINS = {
    "beit_base_patch16_224.dynamo": Pin(10, 1, 0, 1.000, 0.940),
    "bert.dynamo": Pin(13, 1, 0, 1.000, 1.000),
    "bert.legacy": Pin(14, 2, 0, 1.000, 0.826),
    "convformer_s18.dynamo": Pin(41, 5, 0, 1.000, 0.905),
    "convnext_tiny.dynamo": Pin(22, 4, 0, 1.000, 0.962),
    "cspresnet50.dynamo": Pin(46, 0, 0, 1.000, 0.952),
    "deeplabv3_mobilenet_v3_large.dynamo": Pin(36, 0, 0, 1.000, 0.991),
    "deit_tiny_distilled_patch16_224.dynamo": Pin(19, 1, 0, 1.000, 0.833),
    "densenet121.dynamo": Pin(120, 0, 0, 1.000, 0.869),
    "densenet121.legacy": Pin(120, 0, 0, 1.000, 0.869),
    "efficientnet_b0.dynamo": Pin(40, 0, 0, 1.000, 0.721),
    "eva02_tiny_patch14_224.dynamo": Pin(9, 0, 0, 0.940, 0.000),
    "ghostnet_100.dynamo": Pin(31, 0, 0, 1.000, 0.739),
    "gpt2.dynamo": Pin(13, 1, 0, 1.000, 1.000),
    "inception_v3.dynamo": Pin(94, 0, 0, 1.000, 0.914),
    "llama.dynamo": Pin(14, 1, 0, 1.000, 0.805),
    "llama_past.dynamo": Pin(7, 1, 0, 1.000, 0.768),
    "llama_past.legacy": Pin(7, 1, 0, 1.000, 0.768),
    "maxvit_pico.dynamo": Pin(111, 4, 0, 1.000, 0.960),
    "mixer_s32_224.dynamo": Pin(17, 1, 0, 1.000, 0.880),
    "mixtral.dynamo": Pin(12, 3, 0, 1.000, 0.393),
    "mobilenet_v2.dynamo": Pin(25, 0, 0, 1.000, 0.612),
    "mobilenet_v3_large.dynamo": Pin(30, 0, 0, 1.000, 0.748),
    "mobilenet_v3_large.legacy": Pin(30, 0, 0, 1.000, 0.748),
    "qwen2.dynamo": Pin(14, 1, 0, 1.000, 1.000),
    "regnet_y_400mf.dynamo": Pin(69, 0, 0, 1.000, 0.898),
    "resnet50.dynamo": Pin(37, 0, 0, 1.000, 0.919),
    "resnet50.legacy": Pin(37, 0, 0, 1.000, 0.919),
    "resnext50_32x4d.dynamo": Pin(53, 0, 0, 1.000, 0.918),
    "shufflenet_v2_x1_0.dynamo": Pin(38, 0, 7, 0.999, 0.484),
    "shufflenet_v2_x1_0.legacy": Pin(38, 0, 7, 0.999, 0.484),
    "swin_t.dynamo": Pin(40, 4, 0, 1.000, 0.973),
    "t5.dynamo": Pin(19, 0, 0, 1.000, 0.000),
    "vgg19_bn.dynamo": Pin(18, 0, 0, 1.000, 0.985),
    "vit_small_patch16_224.dynamo": Pin(19, 1, 0, 1.000, 0.940),
    "vit_small_patch16_224.legacy": Pin(19, 1, 0, 1.000, 0.940),
}
ONE_BY_ONE = (
    *("bert", "gpt2", "llama", "qwen2", "mixtral", "t5", "deit", "eva02"),
    *("mobilenet", "shufflenet", "regnet", "ghostnet"),
)


@dataclass(repr=False)
class Subject:
    """A model after the rewrites that the analysis wants, and its inputs at two batch sizes."""

    name: str
    proto: onnx.ModelProto
    feeds: Feeds
    single: Feeds
    model: ir.Model = field(init=False)
    groups: Groups = field(init=False)

    def __post_init__(self) -> None:
        """Analyse."""
        self.model, self.groups, _ = prepared(ir.from_proto(self.proto))

    @cached_property
    def oracle(self) -> Oracle:
        """Costs a session and two runs."""
        return Oracle(self.model, self.groups, self.feeds)

    @property
    def plain(self) -> list[str]:
        """Names of the groups that zeroed ≡ removed holds for."""
        return [g.name for g in self.groups if not g.statistics]


@pytest.fixture(scope="module", params=ZOO, ids=lambda p: p.stem)
def zoo(request: pytest.FixtureRequest) -> Subject:
    path: Path = request.param
    feeds, single = sample_inputs(path), sample_inputs(path, batch=1)
    return Subject(path.stem, materialize(path), feeds, single)


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda p: p.stem)
def shipped(request: pytest.FixtureRequest) -> Subject:
    proto = onnx.load(request.param)
    return Subject(request.param.stem, proto, drawn(proto, batch=4), drawn(proto, batch=1))


def drawn(proto: onnx.ModelProto, batch: int) -> Feeds:
    """Noise for float inputs, bytes for tokens; 8 steps where the length is free."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        dims = [d.dim_value or {"batch": batch}.get(d.dim_param, 8) for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(dims, dtype=np.float32)
        else:
            feeds[value.name] = rng.integers(0, 100, dims)
    return feeds


def any_free(dimension: Factor) -> bool:
    return any(is_free(leaf) for leaf in dimension.leaves())


def coverage(groups: Groups) -> tuple[float, float]:
    """Share of linear weights of which any axis, and both of the first two, can shrink."""
    found: dict[ir.Value, tuple[int, list[bool]]] = {}
    for node in groups.analysis.graph:
        for index in _WEIGHTS.get(node.op_type, ()):
            value = node.inputs[index]
            tensor, dims = stored_tensor(value), groups.analysis.operand(node, index)
            if value is not None and tensor is not None and dims and is_float(tensor):
                found[value] = tensor.size, [any_free(d) for d in dims]
    weights = sum(size for size, _ in found.values())
    covered = sum(size for size, free in found.values() if any(free))
    both = sum(size for size, free in found.values() if len(free) > 1 and all(free[:2]))
    return covered / weights, both / weights


def test_groups_are_pinned(zoo: Subject) -> None:
    groups = zoo.groups
    assert not groups.barriers
    covered, both = coverage(groups)
    found = Pin(
        len(groups),
        sum(g.statistics for g in groups),
        sum(g.size == 1 for g in groups),
        round(covered, 3),
        round(both, 3),
    )
    assert found == PINS[zoo.name]
    assert all(axis.reason.strip() for axis in groups.frozen)


def assert_oracles(subject: Subject) -> None:
    """All groups at once; a wrong index would be seen."""
    oracle, groups = subject.oracle, list(subject.groups)
    assert oracle.permutation(groups) <= oracle.tolerance
    plain = [g for g in groups if not g.statistics]
    assert oracle.zeroed_is_removed(half(plain)) <= oracle.tolerance
    assert oracle.commutation(groups, half(groups)) <= oracle.tolerance
    controls = [oracle.control(g) for g in [g for g in groups if g.size > 1][:3]]
    assert min(controls) > 100 * oracle.tolerance


def told_by_its_twin(name: str) -> bool:
    """Another exporter's form of the architecture has the same groups; $LWQC_TEST_ALL for both."""
    twin = name.replace(".legacy", ".dynamo")
    return not ALL and twin != name and PINS.get(twin) == PINS[name]


def test_oracles_hold_for_all_groups_together(zoo: Subject) -> None:
    if told_by_its_twin(zoo.name):
        pytest.skip("the form of the other exporter, with the same groups, is tried")
    assert_oracles(zoo)


def interface(proto: onnx.ModelProto) -> list[str]:
    """Names, types and dimensions of inputs and outputs, and operator set versions."""
    values = [*proto.graph.input, *proto.graph.output]
    opsets = {opset.domain: opset.version for opset in proto.opset_import}
    return [*(f"{v.name} {v.type}" for v in values), f"{opsets}"]


def assert_valid_when_pruned(subject: Subject) -> None:
    """Checker, strict shape inference, the same interface, and the batch size is still free."""
    model = subject.model.clone()
    groups = prepared(model)[1]
    prune_channels(groups, half(groups, seed=1))
    RemoveUnused()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert interface(proto) == interface(subject.proto)


def test_pruned_model_is_valid(zoo: Subject) -> None:
    assert_valid_when_pruned(zoo)


def test_removal_holds_at_another_batch_size(zoo: Subject) -> None:
    oracle, feeds = zoo.oracle, zoo.oracle.feeds
    oracle.feeds = zoo.single
    try:
        removed = half([g for g in zoo.groups if not g.statistics], seed=2)
        assert oracle.zeroed_is_removed(removed) <= oracle.tolerance
    finally:
        oracle.feeds = feeds


def test_oracles_hold_for_each_group_alone(zoo: Subject) -> None:
    if not zoo.name.startswith(ONE_BY_ONE):
        pytest.skip("one run takes too long to try every group")
    if told_by_its_twin(zoo.name):
        pytest.skip("the form of the other exporter, with the same groups, is tried")
    oracle = zoo.oracle
    every = 1 if len(zoo.groups) < 25 else 6  # a removal costs a session
    for number, group in enumerate(zoo.groups):
        assert oracle.permutation([group]) <= oracle.tolerance, group.name
        if number % every:
            continue
        removed = half([group]) or {group.name: [0]}
        if group.statistics:
            error = oracle.commutation([group], removed)
        else:
            error = oracle.zeroed_is_removed(removed)
        assert error <= oracle.tolerance, group.name


def test_oracles_hold_for_shipped_models(shipped: Subject) -> None:
    assert_oracles(shipped)
    assert_valid_when_pruned(shipped)
