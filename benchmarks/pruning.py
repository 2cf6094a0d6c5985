"""One-shot structured pruning of the trained models in models/, without fine-tuning.

python benchmarks/pruning.py [--models NAME ...] [--ratios 0.2 0.3 0.4] [--json FILE]
python benchmarks/pruning.py --show FILE

Same model, same share of MACs removed, no label and no gradient anywhere. Rows: L2 magnitude and
Wanda-style scores, each compared over the whole model; then OBSPA with calibration data from the
training set, with data of another kind, and with random inputs. Other kinds: handwritten digits for
the glyph models, glyphs for the digit model, the English text of pydoc's topics for the code model.
L2 and Wanda are lwqc's own implementations of what Torch-Pruning and others do, in the same
pipeline, so that only the method differs. `+ refit` rows give them OBSPA's second half.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lwqc.compile.execute import execute
from lwqc.decide.channels import decide
from lwqc.decide.compress import open_version
from lwqc.decide.structural import prune_options, pruning_recipe
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
Feeds = dict[str, np.ndarray]


def digits_as_glyphs() -> Iterator[Feeds]:
    """Handwritten digits, enlarged to 32x32, in the range of the glyph images."""
    from sklearn.datasets import load_digits

    from models.glyphs import as_input

    images = np.kron(load_digits().images[:128], np.ones((4, 4)))
    pixels = np.clip(images, 0, 15).astype(np.uint8)
    for start in range(0, 128, 32):
        yield {"image": as_input(pixels[start : start + 32])}


def glyphs_as_digits() -> Iterator[Feeds]:
    """Glyph images, averaged to 8x8, in the range of the digit images."""
    from models.glyphs import calibration

    for feeds in calibration():
        image = feeds["image"]
        small = image.reshape(-1, 1, 8, 4, 8, 4).mean((3, 5))
        low, high = small.min(), small.max()
        yield {"image": ((small - low) / (high - low)).astype(np.float32)}


def english() -> Iterator[Feeds]:
    """Windows of the manual that comes with Python, in the vocabulary of the code model."""
    from pydoc_data.topics import topics

    from models.byte_pairs import BytePairs
    from models.stdlib_lm import VOCABULARY

    text = "\n".join(topics[name] for name in sorted(topics))[:20_000].encode()
    tokens = np.asarray(BytePairs.load(VOCABULARY).encode(text))
    count = 4 * 4
    windows = tokens[: count * 256].reshape(count, 256)
    for start in range(0, count, 4):
        yield {"input_ids": windows[start : start + 4].astype(np.int64)}


GLYPHS = ("models.glyphs:calibration", "models.glyphs:accuracy", digits_as_glyphs)
MODELS: dict[str, tuple[str, str, str, Callable[[], Iterator[Feeds]]]] = {
    "digits": (
        "lwqc/cli/demo/digits.onnx",
        "models.digits:calibration",
        "models.digits:accuracy",
        glyphs_as_digits,
    ),
    "glyph_resnet": ("models/glyph_resnet.onnx", *GLYPHS),
    "glyph_mobilenet": ("models/glyph_mobilenet.onnx", *GLYPHS),
    "glyph_shufflenet": ("models/glyph_shufflenet.onnx", *GLYPHS),
    "glyph_vit": ("models/glyph_vit.onnx", *GLYPHS),
    "stdlib_lm": (
        "models/stdlib_lm.onnx",
        "models.stdlib_lm:calibration",
        "models.stdlib_lm:bits_per_byte",
        english,
    ),
}
# name -> (recipe, options, data)
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "L2": ("spa-l2", {}, "real"),
    "Wanda": ("wanda", {}, "real"),
    "L2 + refit": ("spa-l2", {"compensate": "refit"}, "real"),
    "Wanda + refit": ("wanda", {"compensate": "refit"}, "real"),
    "OBSPA": ("obspa", {}, "real"),
    "OBSPA, other data": ("obspa", {}, "shifted"),
    "OBSPA, random": ("obspa-datafree", {}, "real"),
}


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.2, 0.3, 0.4])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    parser.add_argument("--show", type=Path, help="only print the rows of this file")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if chosen.show:
        rows = json.loads(chosen.show.read_text())
    else:
        for name in chosen.models:
            for row in measured(name, chosen.ratios, chosen.methods):
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                if chosen.json:
                    chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


def measured(name: str, ratios: list[float], methods: list[str]) -> Iterator[dict[str, Any]]:
    """All rows of one model."""
    file, data, metric, shifted = MODELS[name]
    for method in methods:
        recipe, options, kind = METHODS[method]
        feeds: Any = data if kind == "real" else list(shifted())
        work = open_version(ROOT / file, data=feeds, metric=metric)
        assert work.job.metric is not None
        for ratio in ratios:
            start = time.perf_counter()
            wanted = prune_options(pruning_recipe(recipe, has_data=True), ratio=ratio, **options)
            decision = decide(work, wanted)
            done = execute(work, Goals(), decision.plan)
            seconds = time.perf_counter() - start
            yield {
                "model": name,
                "method": method,
                "ratio": ratio,
                "macs_left": decision.after / decision.before,
                "float": work.original.metric,
                "metric": work.job.metric(Session(done.model, label=method)),
                "seconds": round(seconds, 1),
            }


def show(rows: list[dict[str, Any]]) -> None:
    """One table row per model and method, one column per ratio."""
    ratios = sorted({r["ratio"] for r in rows})
    table = Table(title="Metric after pruning, no fine-tuning (stdlib_lm: bits per byte)")
    for column in ("model", "float", "method", *(f"-{r:.0%} MACs" for r in ratios), "seconds"):
        table.add_column(column)
    found = {(r["model"], r["method"], r["ratio"]): r for r in rows}
    for model, method in dict.fromkeys((r["model"], r["method"]) for r in rows):
        here = [found.get((model, method, ratio)) for ratio in ratios]
        first = next(r for r in here if r)
        cells = [f"{r['metric']:.4f}" if r else "" for r in here]
        seconds = "/".join(f"{r['seconds']:.0f}" for r in here if r)
        table.add_row(model, f"{first['float']:.4f}", method, *cells, seconds)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
