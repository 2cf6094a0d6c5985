"""Kinds and blocks of every architecture, and what goes with a branch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from lwqc.graph.branch_kinds import KINDS, branch_kind, branch_tree, feature_axis, removed_nodes
from lwqc.graph.branches import residual_branches
from lwqc.graph.dataflow import Dataflow
from tests.build import model, normal

ROOT = Path(__file__).parents[2]

# model: (attention, mlp, convolution, other), block sizes -> how many, refused additions
TABLE = {
    "beit_base_patch16_224.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "bert.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "bert.legacy": ((3, 3, 0, 0), {2: 3}, 0),
    "convformer_s18.dynamo": ((0, 18, 18, 0), {2: 18}, 0),
    "convnext_tiny.dynamo": ((0, 0, 18, 0), {1: 18}, 0),
    "cspresnet50.dynamo": ((0, 0, 13, 0), {1: 13}, 0),
    "deeplabv3_mobilenet_v3_large.dynamo": ((0, 0, 10, 0), {1: 10}, 0),
    "deit_tiny_distilled_patch16_224.dynamo": ((6, 6, 0, 0), {2: 6}, 1),
    "densenet121.dynamo": ((0, 0, 0, 0), {}, 0),
    "densenet121.legacy": ((0, 0, 0, 0), {}, 0),
    "efficientnet_b0.dynamo": ((0, 0, 9, 0), {1: 9}, 0),
    "eva02_tiny_patch14_224.dynamo": ((4, 4, 0, 0), {2: 4}, 0),
    "ghostnet_100.dynamo": ((0, 0, 11, 0), {1: 11}, 5),
    "gpt2.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "inception_v3.dynamo": ((0, 0, 0, 0), {}, 0),
    "llama.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "llama_past.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "llama_past.legacy": ((3, 3, 0, 0), {2: 3}, 0),
    "maxvit_pico.dynamo": ((22, 22, 7, 0), {2: 15, 3: 7}, 4),
    "mixer_s32_224.dynamo": ((0, 16, 0, 0), {2: 8}, 0),
    "mixtral.dynamo": ((2, 2, 0, 0), {2: 2}, 0),
    "mobilenet_v2.dynamo": ((0, 0, 10, 0), {1: 10}, 0),
    "mobilenet_v3_large.dynamo": ((0, 0, 10, 0), {1: 10}, 0),
    "mobilenet_v3_large.legacy": ((0, 0, 10, 0), {1: 10}, 0),
    "qwen2.dynamo": ((3, 3, 0, 0), {2: 3}, 0),
    "regnet_y_400mf.dynamo": ((0, 0, 12, 0), {1: 12}, 4),
    "resnet50.dynamo": ((0, 0, 12, 0), {1: 12}, 4),
    "resnet50.legacy": ((0, 0, 12, 0), {1: 12}, 4),
    "resnext50_32x4d.dynamo": ((0, 0, 12, 0), {1: 12}, 4),
    "shufflenet_v2_x1_0.dynamo": ((0, 0, 0, 0), {}, 0),
    "shufflenet_v2_x1_0.legacy": ((0, 0, 0, 0), {}, 0),
    "swin_t.dynamo": ((12, 12, 0, 0), {2: 12}, 0),
    "t5.dynamo": ((6, 4, 0, 0), {2: 2, 3: 2}, 0),
    "vgg19_bn.dynamo": ((0, 0, 0, 0), {}, 0),
    "vit_small_patch16_224.dynamo": ((6, 6, 0, 0), {2: 6}, 0),
    "vit_small_patch16_224.legacy": ((6, 6, 0, 0), {2: 6}, 0),
    "glyph_mobilenet": ((0, 0, 4, 0), {1: 4}, 0),
    "glyph_resnet": ((0, 0, 4, 0), {1: 4}, 2),
    "glyph_shufflenet": ((0, 0, 0, 0), {}, 0),
    "glyph_vit": ((6, 6, 0, 0), {2: 6}, 0),
    "stdlib_lm": ((12, 12, 0, 0), {2: 12}, 0),
    "stdlib_lm_past": ((12, 12, 0, 0), {2: 12}, 0),
}


def path_of(name: str) -> Path:
    folder = "tests/zoo" if "." in name else "models"
    return ROOT / folder / f"{name}.onnx"


@pytest.mark.parametrize("name", TABLE)
def test_architectures(name: str) -> None:
    kinds, blocks, refused = TABLE[name]
    tree = branch_tree(ir.load(path_of(name)).graph)
    assert tuple(tree.count(kind) for kind in KINDS) == kinds
    assert Counter(len(block) for block in tree.blocks) == blocks
    assert len(tree.refused) == refused
    assert all(r.reason for r in tree.refused)
    assert len(tree.by_name) == len(tree.branches)


def test_the_table_holds_the_whole_zoo() -> None:
    files = [*(ROOT / "tests/zoo").glob("*.onnx"), *(ROOT / "models").glob("*.onnx")]
    shipped = {f.stem for f in files if f.stem != "minilm"}  # not in git
    assert shipped == set(TABLE)


def test_decoder_blocks_and_cross_attention() -> None:
    tree = branch_tree(ir.load(path_of("t5.dynamo")).graph)
    decoder = [[(b.kind, b.cross) for b in block] for block in tree.blocks if len(block) == 3]
    assert decoder == [[("attention", False), ("attention", True), ("mlp", False)]] * 2


def test_cross_attention_takes_its_keys_and_values_along() -> None:
    graph = ir.load(path_of("t5.dynamo")).graph
    flow = Dataflow(graph)
    cross = next(b.branch for b in branch_tree(graph).branches if b.cross)
    own = sum(n.op_type == "MatMul" for n in cross.nodes)
    assert own == 4
    assert sum(n.op_type == "MatMul" for n in removed_nodes(cross, flow)) == own + 2


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("convnext_tiny.dynamo", {1}),  # its layers see channels last
        ("swin_t.dynamo", {-1}),  # rank 4, channels last
        ("mixer_s32_224.dynamo", {-1}),
        ("resnet50.legacy", {1}),
        ("gpt2.dynamo", {-1}),
    ],
)
def test_feature_axis(name: str, axes: set[int]) -> None:
    found = {feature_axis(b) for b in residual_branches(ir.load(path_of(name)).graph)}
    assert found == axes


ROWS = {
    "mlp": [("MatMul", ["x", "w"], "f", {})],
    "attention": [
        ("MatMul", ["x", "w"], "q", {}),
        ("Transpose", ["q"], "k", {}),
        ("MatMul", ["q", "k"], "s", {}),
        ("Softmax", ["s"], "p", {}),
        ("MatMul", ["p", "q"], "f", {}),
    ],
    "other": [("Mul", ["x", "gain"], "f", {})],
}


@pytest.mark.parametrize("kind", ROWS)
def test_kinds(kind: str) -> None:
    rows = [*ROWS[kind], ("Add", ["x", "f"], "y", {})]
    weights = {"w": normal(4, 4), "gain": normal(4)}
    built = model(rows, weights, {"x": [3, 4]}, ["y"])
    (branch,) = residual_branches(built.graph)
    assert branch_kind(branch) == kind


def test_a_router_is_no_attention() -> None:
    rows = [
        ("MatMul", ["x", "w"], "r", {}),
        ("Softmax", ["r"], "p", {}),
        ("MatMul", ["x", "w"], "h", {}),
        ("MatMul", ["p", "h"], "f", {}),
        ("Add", ["x", "f"], "y", {}),
    ]
    built = model(rows, {"w": normal(4, 4)}, {"x": [4, 4]}, ["y"])
    (branch,) = residual_branches(built.graph)
    assert branch_kind(branch) == "mlp"


def test_one_pixel_convolutions_are_an_mlp() -> None:
    for size, kind in ((1, "mlp"), (3, "convolution")):
        pads = [size // 2] * 4
        rows = [("Conv", ["x", "w"], "f", {"pads": pads}), ("Add", ["x", "f"], "y", {})]
        built = model(rows, {"w": normal(4, 4, size, size)}, {"x": [1, 4, 8, 8]}, ["y"])
        (branch,) = residual_branches(built.graph)
        assert branch_kind(branch) == kind
