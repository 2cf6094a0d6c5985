"""How operators pass scaled channels on: one row per operator, see `scale_labels`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from lwqc.graph.scale_labels import Labelling, UnfitError
from lwqc.graph.scale_rules import layers, movement, several, single
from lwqc.graph.scale_rules.layers import Rule


def visit(walk: Labelling, node: ir.Node) -> None:
    """Label the outputs of a node."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type), single.barrier)
    try:
        (single.barrier if walk.freeze_captured(node) else rule)(walk, node)
    except UnfitError as error:
        walk.freeze_operands(node, str(error))
    walk.drop_misfits(node)


_SAME = "Identity Relu LeakyRelu PRelu Neg Abs"
_ALIKE = "Add Sub Sum Max Min Mean Where"
_CHANNELWISE = "MaxPool AveragePool GlobalAveragePool GlobalMaxPool"
_MOVED = "Reshape Flatten Squeeze Unsqueeze"
_REDUCED = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2"
_MS = "com.microsoft"
# Operators whose first operand's numbers all stay as they are, or go.
MOVES = frozenset(_MOVED.split()) | {"Identity", "Transpose", "Slice", "Split", "Gather"}

RULES: Mapping[tuple[str, str], Rule] = {
    **{("", op): single.same for op in _SAME.split()},
    **{("", op): several.total for op in _ALIKE.split()},
    **{("", op): single.spatial for op in _CHANNELWISE.split()},
    **{("", op): movement.reshape for op in _MOVED.split()},
    **{("", op): single.reduce for op in _REDUCED.split()},
    **{("", op): layers.linear for op in ("MatMul", "Gemm", "Conv")},
    **{("", op): single.shape_only for op in ("Shape", "Size", "Constant")},
    ("", "Cast"): single.cast,
    ("", "Dropout"): single.dropout,
    ("", "Clip"): single.clip,
    ("", "Resize"): single.resize,
    ("", "Pad"): single.pad,
    ("", "Transpose"): movement.transpose,
    ("", "Expand"): single.same,
    ("", "Slice"): movement.cut,
    ("", "Split"): movement.split,
    ("", "Gather"): movement.gather,
    ("", "Concat"): movement.concat,
    ("", "Mul"): several.multiply,
    ("", "Div"): several.divide,
    ("", "LayerNormalization"): layers.affine_norm(1, 2),
    ("", "RMSNormalization"): layers.affine_norm(1, None),
    ("", "SimplifiedLayerNormalization"): layers.affine_norm(1, None),
    (_MS, "SkipLayerNormalization"): layers.affine_norm(2, 3),
    (_MS, "SkipSimplifiedLayerNormalization"): layers.affine_norm(2, None),
    ("", "BatchNormalization"): layers.affine_norm(1, 2, axis=1),
    ("", "InstanceNormalization"): layers.affine_norm(1, 2, axis=1),
    ("", "GroupNormalization"): layers.affine_norm(1, 2, axis=1),
}
