"""Fewer tokens on top of 8 bits: what they cost and how much faster models get.

    python -m benchmarks.tokens [NAME ...] [--shares 0.2,0.3] [--importance rank]

glyph_vit, or the file of another model of the glyphs (`benchmarks.glyph_deit` makes one): accuracy
on 2,000 held-out images, with the 95 % interval of a paired bootstrap of what is lost against 8
bits with all tokens. deit_tiny: DeiT-shaped, with random weights, so that only
its speed and the share of equal answers mean anything. Times are medians of ratios of runs in
turns, at batches of 1 and 32 (deit_tiny: 1 and 4).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import lwqc
from lwqc.errors import InputError
from lwqc.plans.recipe import TokenRecipe, find
from lwqc.runtime.served import Served, relative_times
from lwqc.runtime.session import Session
from models import glyphs
from tests.zoo.materialize import materialize

ROOT = Path(__file__).parents[1]
SHARES = (0.2, 0.3, 0.4, 0.5)
DEIT = "deit_tiny_distilled_patch16_224.dynamo"
Answers = NDArray[np.intp]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["glyph_vit", "deit_tiny"])
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--recipe", default="w8a8-fused", help="that of both")
    parser.add_argument("--importance", default="auto", help="class, received or rank")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each model")
    chosen = parser.parse_args()
    table = Table(title=f"Fewer tokens on top of {chosen.recipe}")
    for column in ("model", "tokens", "answers", "lost, points", "faster at 1", "faster batched"):
        table.add_column(column)
    for name in chosen.names:
        shares = [float(share) for share in chosen.shares.split(",")]
        for row in rows(name, shares, chosen):
            print(name, *row, file=sys.stderr, flush=True)
            table.add_row(name, *row)
    Console(width=120).print(table)


def rows(name: str, shares: Sequence[float], chosen: Any) -> Iterator[tuple[str, ...]]:
    """One for each share, after that with all tokens."""
    model, data, judged, batches = _deit() if name == "deit_tiny" else _glyphs(name)
    whole = lwqc.compress(model, recipe=chosen.recipe, data=data)
    sessions = [Session(whole.model, label="all tokens")]
    right = [judged(sessions[0])]
    labels = ["all"]
    for share in shares:
        try:
            tokens = TokenRecipe(share=share, importance=chosen.importance)
            recipe = find(chosen.recipe).model_copy(update={"tokens": tokens})
            short = lwqc.compress(model, recipe=recipe, data=data)
        except InputError as error:
            print(error, file=sys.stderr)
            continue
        sessions.append(Session(short.model, label="fewer tokens"))
        right.append(judged(sessions[-1]))
        labels.append(" ".join(str(entry.keep) for entry in short.plan.tokens))
    times = relative_times(sessions, [Served("", f) for f in batches], chosen.seconds)
    for label, own, relative in zip(labels, right, times, strict=True):
        faster = (f"{1 / r:.2f}x" for r in relative)
        yield label, f"{100 * own.mean():.2f} %", _lost(right[0], own), *faster


def _lost(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> str:
    """Points, with the 95 % interval of a paired bootstrap."""
    rng = np.random.default_rng(0)
    lost = 100 * (before.astype(float) - after)
    means = lost[rng.integers(0, len(lost), (2000, len(lost)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{lost.mean():.2f} ({low:.2f} to {high:.2f})"


def _glyphs(name: str) -> tuple[Any, Any, Any, list[Any]]:
    feeds, pixels = glyphs.test_feeds(), next(iter(glyphs.calibration()))["image"]
    with np.load(glyphs.DATA) as stored:
        labels = stored["test_labels"]

    def judged(run: Session) -> NDArray[np.bool_]:
        return np.concatenate([run(f)["logits"].argmax(-1) for f in feeds]) == labels

    batches = [{"image": pixels[:n]} for n in (1, 32)]
    path = ROOT / f"models/{name}.onnx" if name == "glyph_vit" else Path(name)
    return path, list(glyphs.calibration()), judged, batches


def _deit() -> tuple[Any, Any, Any, list[Any]]:
    model = materialize(ROOT / f"tests/zoo/{DEIT}.onnx", whole=True)
    name = model.graph.input[0].name
    images = np.random.default_rng(0).standard_normal((32, 3, 224, 224), dtype=np.float32)
    path = Path("/tmp/deit_tiny.onnx")
    onnx.save(model, path)
    feeds = [{name: images[i : i + 4]} for i in range(16, 32, 4)]
    original = [_answers(Session(lwqc.load(path)), f) for f in feeds]

    def judged(run: Session) -> NDArray[np.bool_]:
        return np.concatenate([_answers(run, f) == o for f, o in zip(feeds, original, strict=True)])

    return path, [{name: images[:4]}], judged, [{name: images[:n]} for n in (1, 4)]


def _answers(run: Session, feeds: Any) -> Answers:
    found: Answers = next(iter(run(feeds).values())).argmax(-1)
    return found


if __name__ == "__main__":
    main()
