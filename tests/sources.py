"""Small files of data as users have it, and models that take it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir


def net(inputs: str, output: str, body: str) -> ir.Model:
    """A model in a line of ONNX's text form."""
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({output}) {{ {body} }}'
    )


def image_net(shape: str = "batch, 3, 4, 6", dtype: str = "float") -> ir.Model:
    """Gives the image that it takes."""
    return net(f"{dtype}[{shape}] image", f"{dtype}[{shape}] y", "y = Identity(image)")


def classes_net(classes: int = 3) -> ir.Model:
    """The mean of each channel of an image as the score of a class."""
    assert classes == 3
    return net(
        "float[batch, 3, 4, 6] image",
        "float[batch, 3] y",
        "means = GlobalAveragePool(image)\n y = Flatten(means)",
    )


def save_image(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels [height, width, 3] or [height, width] as a file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def flat(color: tuple[int, int, int], height: int = 4, width: int = 6) -> np.ndarray:
    """An image of one colour."""
    return np.full((height, width, 3), color, np.uint8)
