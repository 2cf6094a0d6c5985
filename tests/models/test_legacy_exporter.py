"""Torch's older exporter (opset 17) gives the same outputs from the shipped weights."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest

from models import digits, glyphs, stdlib_lm
from models.training import FOLDER, export_legacy, open_run

torch = pytest.importorskip("torch", reason="exporting needs torch")
GLYPH_MODELS = ["glyph_resnet", "glyph_mobilenet", "glyph_vit", "glyph_shufflenet"]
# Single-precision sums in another order, at logits of up to about 20.
TOLERANCE = 1e-3


def definition(name: str):
    from models.from_onnx import load_weights

    if name == "stdlib_lm":
        from models.stdlib_lm_network import Decoder, Shape, WithoutCache

        return load_weights(WithoutCache(Decoder(Shape())), stdlib_lm.MODEL), stdlib_lm.MODEL
    module = importlib.import_module(f"models.{name}")
    path = digits.MODEL if name == "digits" else FOLDER / f"{name}.onnx"
    return load_weights(module.network(), path), path


def feeds_of(name: str):
    task = {"digits": digits, "stdlib_lm": stdlib_lm}.get(name, glyphs)
    return {k: v[:4] for k, v in next(task.calibration()).items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the older exporter is deprecated and says so
@pytest.mark.parametrize("name", ["digits", *GLYPH_MODELS, "stdlib_lm"])
def test_both_exporters_agree(name: str, tmp_path) -> None:
    module, shipped = definition(name)
    feeds = feeds_of(name)
    [(input_name, value)] = feeds.items()
    # Fewer samples (and tokens) than are fed later: the axes must really be dynamic.
    example = torch.from_numpy(value[:2, :7] if name == "stdlib_lm" else value[:2])
    axes = {0: "batch", 1: "sequence"} if name == "stdlib_lm" else {0: "batch"}
    path = tmp_path / "legacy.onnx"
    export_legacy(
        module,
        (example,),
        path,
        inputs=[input_name],
        outputs=["logits"],
        dynamic_axes={input_name: axes, "logits": axes},
    )
    assert onnx.load(path).opset_import[0].version == 17
    expected = open_run(shipped)(feeds)["logits"]
    np.testing.assert_allclose(open_run(path)(feeds)["logits"], expected, atol=TOLERANCE)
