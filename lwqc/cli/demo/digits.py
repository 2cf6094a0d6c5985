"""Real handwritten digits and the accuracy of a classifier on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH = 64


def _arrays() -> dict[str, NDArray[Any]]:
    with (
        resources.as_file(resources.files("lwqc.cli.demo") / "digits.npz") as path,
        np.load(path) as archive,
    ):
        return {name: archive[name] for name in archive.files}


def _feeds(images: NDArray[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    scaled = (images / np.float32(16)).astype(np.float32)[:, None]
    for start in range(0, len(scaled), _BATCH):
        yield {"image": scaled[start : start + _BATCH]}


def calibration() -> Iterator[dict[str, NDArray[Any]]]:
    """Training images: `image` [n, 1, 8, 8] in 0..1."""
    return _feeds(_arrays()["calibration_images"])


def accuracy(run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]) -> float:
    """Top-1 on images that were held back from training."""
    arrays = _arrays()
    predicted = [run(feeds)["logits"].argmax(-1) for feeds in _feeds(arrays["test_images"])]
    return float(np.mean(np.concatenate(predicted) == arrays["test_labels"]))
