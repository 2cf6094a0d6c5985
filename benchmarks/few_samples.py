"""Channels removed with few samples: damping of the refit that is fixed, or judged by halves.

    python -m benchmarks.few_samples [--models NAME ...] [--share S]

Each model is pruned by `obspa` with 128 and with 32 calibration images, in four batches each; the
divergence from the original's probabilities (nats) and the accuracy are those of 2,000 images that
are drawn for this, in fonts that neither training nor calibration saw. `part`: of the damping that
is best by halves, what is taken; fixed: 0.01 of the mean of the diagonal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

import lwqc
from lwqc.quant import refit
from lwqc.runtime.session import Session
from models import glyphs
from models.glyph_images import TEST_FONTS, make

ROOT = Path(__file__).parents[1]
PARTS = (1.0, 0.5, 0.25)
_SEED, _JUDGED, _AT_ONCE = 78, 2000, 100


def log_probabilities(run: Session, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """[images, classes]."""
    starts = range(0, len(images), _AT_ONCE)
    logits = [run({"image": images[i : i + _AT_ONCE]})["logits"] for i in starts]
    return np.asarray(log_softmax(np.concatenate(logits).astype(np.float64), -1))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["glyph_vit", "glyph_resnet", "glyph_mobilenet"]
    parser.add_argument("--models", nargs="+", default=names)
    parser.add_argument("--share", type=float, default=0.4, help="of the MACs that go")
    chosen = parser.parse_args()
    judged = make(_JUDGED, _SEED, fonts=TEST_FONTS)
    images = glyphs.as_input(judged.pixels)
    calibration = np.concatenate([f["image"] for f in glyphs.calibration()])
    ways = ["fixed", *(f"part {p:g}" for p in PARTS)]
    print("| model | images | " + " | ".join(ways) + " |")
    print("| --- | ---: |" + " --- |" * len(ways))
    for name in chosen.models:
        path = ROOT / f"models/{name}.onnx"
        whole = log_probabilities(Session(lwqc.load(path), label=name), images)
        for count in (128, 32):
            data = [{"image": part} for part in np.split(calibration[:count], 4)]
            cells = []
            for part in (0.0, *PARTS):
                with mock.patch.object(refit, "_OF_HALF", part):
                    done = lwqc.prune(path, recipe="obspa", ratio=chosen.share, data=data)
                found = log_probabilities(Session(done.model, label=name), images)
                lost = (np.exp(whole) * (whole - found)).sum(-1).mean()
                right = (found.argmax(-1) == judged.labels).mean()
                cells.append(f"{lost:.4f}, {right:.4f}")
            print(f"| {name} | {count} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
