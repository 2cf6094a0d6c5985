"""Samples that compressed models decide otherwise: of single ones, and of most of a population.

    python -m benchmarks.exemplars [NAME ...] [--bits 3] [--models 5]

Glyph models, each quantized by GPTQ on 320 training images of so many seeds; 2,000 test images.
The claim (1911.05248): what a population flips are the hard samples. "right" is the share of the
samples that the original decides right, with its standard error; "shared": of the samples that one
model flips, how many most of them flip.
"""

from __future__ import annotations

import argparse

import numpy as np

import lwqc
from benchmarks.recovery import BATCH, ROOT, images
from lwqc.model import io
from lwqc.runtime.flips import compare_decisions
from lwqc.runtime.session import Session
from models import glyphs

SEED = 500


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["glyph_vit", "glyph_resnet"])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--models", type=int, default=5)
    asked = parser.parse_args()
    feeds = glyphs.test_feeds()
    with np.load(glyphs.DATA) as data:
        labels = data["test_labels"]
    print("| model | flipped by one | by most | shared | right, flipped by most | right, all |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in asked.names:
        original = io.load(ROOT / f"{name}.onnx")
        small = [
            lwqc.quantize(
                original, bits=asked.bits, method="gptq", data=images(10 * BATCH, SEED + i)
            ).model
            for i in range(asked.models)
        ]
        before, *after = (decisions(Session(m), feeds) for m in (original, *small))
        alone = [
            {f.sample for f in compare_decisions(before, a[None], labels).flipped} for a in after
        ]
        most = [f.sample for f in compare_decisions(before, np.stack(after), labels).flipped]
        right = before == labels
        counts = [len(one) for one in alone]
        share = np.mean([len(one & set(most)) / len(one) for one in alone])
        error = np.sqrt(right[most].mean() * (1 - right[most].mean()) / len(most))
        print(
            f"| {name} | {min(counts)} to {max(counts)} | {len(most)} | {share:.2f} | "
            f"{right[most].mean():.2f} ({error:.2f}) | {right.mean():.3f} |",
            flush=True,
        )


def decisions(run: Session, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Classes of all images."""
    (name,) = run.outputs
    return np.concatenate([run(one)[name].argmax(axis=1) for one in feeds])


if __name__ == "__main__":
    main()
