"""The four models that targets beside the CPU are measured on, with data for each.

all-MiniLM-L6-v2 (a file, and a folder of batches as `.npz`, or the package of `models.minilm`),
ResNet-50 with random weights, nudenet's 320n.onnx (YOLOv8n), and the shipped glyph_vit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from models import glyphs, minilm
from models.training import FOLDER
from tests.zoo.materialize import materialize

Feeds = dict[str, NDArray[Any]]
_ZOO = Path(__file__).parents[1] / "tests" / "zoo"
_IMAGES = 12


@dataclass(frozen=True)
class Case:
    """calibration, held_back: batches that do not overlap. timed: one input."""

    name: str
    path: Path
    calibration: Sequence[Feeds]
    held_back: Sequence[Feeds]
    transformer: bool = False

    @property
    def timed(self) -> Feeds:
        """The first row of the held-back data."""
        return {name: array[:1] for name, array in self.held_back[0].items()}


def images(count: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise of many widths: [count, 3, size, size], mean 0 and deviation 1 in each channel."""
    rng = np.random.default_rng(seed)
    made = np.empty((count, 3, size, size), np.float32)
    for image, width in zip(made, rng.uniform(0.5, 8, count), strict=True):
        for channel in image:
            plane = gaussian_filter(rng.standard_normal((size, size)), width)
            channel[:] = (plane - plane.mean()) / plane.std()
    return made


def _split(name: str, rows: NDArray[np.float32]) -> tuple[list[Feeds], list[Feeds]]:
    single = [{name: row[None]} for row in rows]
    cut = 2 * len(single) // 3
    return single[:cut], single[cut:]


def _resnet50(folder: Path, given: Path | None, data: Path | None) -> Case:
    path = folder / "resnet50.onnx"
    onnx.save(materialize(_ZOO / "resnet50.dynamo.onnx"), path)
    return Case("ResNet-50", path, *_split("x", images(_IMAGES, 224)))


def _nudenet(folder: Path, given: Path | None, data: Path | None) -> Case | None:
    if given is None:
        return None
    pictures = images(_IMAGES, 320)
    return Case("320n.onnx", given, *_split("images", np.clip(pictures / 6 + 0.5, 0, 1)))


def _glyph_vit(folder: Path, given: Path | None, data: Path | None) -> Case:
    single = [
        {name: array[i : i + 1] for name, array in feeds.items()}
        for feeds in glyphs.calibration()
        for i in range(len(array_of(feeds)))
    ]
    held_back = glyphs.test_feeds()[:4]
    return Case("glyph_vit", FOLDER / "glyph_vit.onnx", single, held_back, transformer=True)


def array_of(feeds: Feeds) -> NDArray[Any]:
    """Any array of a batch, for its number of rows."""
    return next(iter(feeds.values()))


def _minilm(folder: Path, given: Path | None, data: Path | None) -> Case | None:
    if given is None:
        return None
    if data is None:
        held_back = [minilm.tokenize(minilm.sentences()[i : i + 12]) for i in range(0, 96, 12)]
        return Case("all-MiniLM-L6-v2", given, list(minilm.calibration()), held_back, True)
    batches = [dict(np.load(file)) for file in sorted(data.glob("*.npz"))]
    return Case("all-MiniLM-L6-v2", given, batches[::2], batches[1::2], transformer=True)


CASES: dict[str, Callable[[Path, Path | None, Path | None], Case | None]] = {
    "minilm": _minilm,
    "resnet50": _resnet50,
    "320n": _nudenet,
    "glyph_vit": _glyph_vit,
}


def command_line(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """Which of them, where their files are, and how long they are timed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--minilm", type=Path, help="the ONNX file of all-MiniLM-L6-v2")
    parser.add_argument("--minilm-data", type=Path, help="a folder of batches as .npz")
    parser.add_argument("--nudenet", type=Path, help="320n.onnx of the package nudenet")
    parser.add_argument("--seconds", type=float, default=seconds, help="of timing")
    parser.add_argument("--json", type=Path)
    return parser


def asked(given: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The models that the command line asks for; those without a file are told."""
    files = {"minilm": given.minilm, "320n": given.nudenet}
    for name in given.names or CASES:
        case = CASES[name](folder, files.get(name), given.minilm_data)
        if case is None:
            print(f"{name}: left out, its file was not given")
        else:
            yield case
