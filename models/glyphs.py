"""The task of the four glyph models: which of 180 characters is in a noisy 32x32 image?

Test images use fonts that training images do not, and other seeds. They are frozen in
`glyphs.npz`, because another version of the font renderer may move an edge by a grey level.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.glyph_images import LEVELS, SIZE, TEST_FONTS, TRAIN_FONTS, make
from models.training import FOLDER, Feeds, Run, batches, top1

DATA = FOLDER / "glyphs.npz"
TRAIN_SEED, CALIBRATION_SEED, TEST_SEED = 1, 2, 3
_CALIBRATED, _TESTED, _BATCH = 128, 2000, 100


def make_data() -> dict[str, NDArray[np.uint8]]:
    """What `glyphs.npz` holds; pixels are packed two to a byte."""
    held_back = make(_TESTED, TEST_SEED, fonts=TEST_FONTS)
    calibrated = make(_CALIBRATED, CALIBRATION_SEED, fonts=TRAIN_FONTS)
    return {
        "test_pixels": _pack(held_back.pixels),
        "test_labels": held_back.labels,
        "calibration_pixels": _pack(calibrated.pixels),
    }


def as_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels [n, 32, 32] in 0..15 -> `image` [n, 1, 32, 32] in -1..1."""
    return pixels[:, None].astype(np.float32) * np.float32(2 / (LEVELS - 1)) - np.float32(1)


def calibration() -> Iterator[Feeds]:
    """Images in the training fonts, from a seed of their own: `image` [32, 1, 32, 32]."""
    yield from batches({"image": as_input(_load("calibration_pixels"))}, 32)


def test_feeds() -> list[Feeds]:
    """The held-back images: `image` [100, 1, 32, 32]."""
    return batches({"image": as_input(_load("test_pixels"))}, _BATCH)


def accuracy(run: Run) -> float:
    """Top-1 on the held-back images."""
    with np.load(DATA) as data:
        return top1(run, test_feeds(), data["test_labels"])


def metrics(run: Run) -> dict[str, float]:
    """What `--evaluate` prints."""
    return {"accuracy": accuracy(run)}


def _pack(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit pixels in a byte, the first one high: [n, 32, 32] -> [n, 32, 16]."""
    return pixels[..., ::2] * np.uint8(16) + pixels[..., 1::2]


def _load(name: str) -> NDArray[np.uint8]:
    """Unpack pixels [n, 32, 32] of the frozen data."""
    with np.load(DATA) as data:
        packed: NDArray[np.uint8] = data[name]
    pixels: NDArray[np.uint8] = np.stack([packed // 16, packed % 16], axis=-1)
    return pixels.reshape(-1, SIZE, SIZE)


if __name__ == "__main__":
    np.savez_compressed(DATA, **make_data())  # type: ignore[arg-type]
