"""What the networks of `models/` are trained on: batches, labels and accuracy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import digits, glyph_images, glyph_training, glyphs
from models.training import Feeds, Run, export

Batch = tuple[np.ndarray, np.ndarray]  # images and labels


@dataclass(frozen=True)
class Task:
    """A network and its data. draw: a batch of a size, by the number of its step.

    export: writes the network with first weights. calibration: inputs without labels.
    """

    draw: Callable[[int, int], Batch]
    export: Callable[[Path], None]
    accuracy: Callable[[Run], float]
    calibration: Callable[[], Iterable[Feeds]]


def find(name: str) -> Task:
    """`digits`, or one of the glyph models."""
    if name == "digits":
        return Task(_Digits(), _export_digits, digits.accuracy, digits.calibration)
    network = importlib.import_module(f"models.{name}").network
    return Task(
        _glyphs,
        lambda path: glyph_training.export_network(network(), path, untrained=True),
        glyphs.accuracy,
        glyphs.calibration,
    )


class _Digits:
    """Images of 1,257 handwritten digits, moved by a pixel and with noise on them."""

    def __init__(self) -> None:
        data = digits.make_data()
        self._images = (data["train_images"] / np.float32(16)).astype(np.float32)
        self._labels = data["train_labels"].astype(np.int64)

    def __call__(self, step: int, count: int) -> Batch:
        rng = np.random.default_rng([step, count])
        chosen = rng.choice(len(self._images), count, replace=False)
        moved = np.roll(self._images[chosen], rng.integers(-1, 2, 2), (1, 2))
        noise = rng.normal(0, 0.1, moved.shape).astype(np.float32)
        return (moved + noise)[:, None], self._labels[chosen]


def _glyphs(step: int, count: int) -> Batch:
    """Drawn as it goes: no image is seen twice."""
    drawn = glyph_images.make(count, 1_000_003 + step, fonts=glyph_images.TRAIN_FONTS)
    return glyphs.as_input(drawn.pixels), drawn.labels.astype(np.int64)


def _export_digits(path: Path) -> None:
    options: dict[str, Any] = {
        "inputs": ["image"],
        "outputs": ["logits"],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        "untrained": True,
    }
    export(digits.network(), (torch.rand(2, 1, 8, 8),), path, **options)
