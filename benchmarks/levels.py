"""The joint search with codebooks and fewer tokens among its levels, beside it without them.

    python -m benchmarks.levels [--models NAME ...] [--sizes S ...] [--latencies L ...]
        [--seeds N ...] [--effort low] [--json FILE]
    python -m benchmarks.levels --show FILE ...

Under a size codebooks are the levels in question, under a time how many tokens the model goes on
with. Everything else is the same: model, data, seed, effort and budget. The metric is taken on data
that neither calibration nor the search saw, on the file that was saved, as are its size and time;
`less` is what is lost less with the levels, mean over the seeds, with the 95 % interval of a paired
bootstrap over the held-out samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search.control import SearchControl
from lwqc.model import io
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import Recipe, find
from lwqc.runtime.session import Session
from models import glyphs

ROOT = Path(__file__).parents[1]
DATA = "models.glyphs:calibration"
KINDS = ("format", "width", "branch")
Row = dict[str, Any]


def measured(chosen: argparse.Namespace) -> Iterator[Row]:
    """A row for each model, budget, seed, and with or without the levels."""
    budgets = [("size", s) for s in chosen.sizes] + [("latency", t) for t in chosen.latencies]
    for name in chosen.models:
        for kind, budget in budgets:
            for seed in chosen.seeds:
                for levels in (True, False):
                    row: Row = {"model": name, "kind": kind, "budget": budget, "seed": seed}
                    row["levels"] = levels
                    yield row | one(name, kind, budget, seed, levels, chosen)


def one(
    name: str, kind: str, budget: float, seed: int, levels: bool, chosen: argparse.Namespace
) -> Row:
    """One search from nothing, measured on what it saves."""
    work = open_version(ROOT / f"models/{name}.onnx", data=DATA)
    amount = Amount(budget, True)
    goals = Goals(max_size=amount) if kind == "size" else Goals(max_latency=amount)
    control = SearchControl(effort=chosen.effort, seed=seed)
    start = time.perf_counter()
    with nullcontext() if levels else mock.patch("lwqc.backends.cpu.codebook_formats", _none):
        done = compress_version(work, goals, recipe(levels), control)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.onnx"
        report = done.save(file)
        right = answers(Session(io.load(file), label="saved"))
    formats: dict[str, int] = {}
    for entry in done.plan.quantize.values():
        formats[str(entry.weight)] = formats.get(str(entry.weight), 0) + 1
    return {
        "right": right.tolist(),
        "size": report.output_bytes / report.source_bytes,
        "latency": 1 / report.latencies[0].speedup,
        "seconds": round(seconds, 1),
        "tokens": [entry.keep for entry in done.plan.tokens],
        "formats": formats,
    }


def recipe(levels: bool) -> Recipe:
    """One search over all kinds."""
    found = find("evopress-joint")
    section = found.search_in
    assert section is not None
    return found if levels else found.model_copy(
        update={"search_in": section.model_copy(update={"kinds": KINDS})}
    )  # fmt: skip


def _none(weights: int) -> list[Any]:
    return []


def answers(run: Session) -> NDArray[np.int64]:
    """Whether each held-out image is told rightly."""
    with np.load(glyphs.DATA) as stored:
        labels = stored["test_labels"]
    found = np.concatenate([run(f)["logits"].argmax(-1) for f in glyphs.test_feeds()])
    return (found == labels).astype(np.int64)


def show(rows: Sequence[Row]) -> None:
    """Markdown: a row for each budget."""
    print("| model | budget | with | without | more right, points | reached with | without |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for key in dict.fromkeys((r["model"], r["kind"], r["budget"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["kind"], r["budget"]) == key]
        pairs = [[r for r in mine if r["levels"] is levels] for levels in (True, False)]
        right = [np.array([r["right"] for r in own], float) for own in pairs]
        gained = 100 * (right[0].mean(0) - right[1].mean(0))
        rng = np.random.default_rng(0)
        means = gained[rng.integers(0, len(gained), (2000, len(gained)))].mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
        cells = [
            f"{100 * r.mean():.2f} ({100 * r.mean(1).min():.2f} to {100 * r.mean(1).max():.2f})"
            for r in right
        ]
        reached = [f"{max(r[key[1]] for r in own):.3f}" for own in pairs]
        print(
            f"| {key[0]} | {key[1]} {key[2]:g} | {cells[0]} | {cells[1]} "
            f"| {gained.mean():.2f} ({low:.2f} to {high:.2f}) | {reached[0]} | {reached[1]} |"
        )


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["glyph_vit", "glyph_resnet"])
    parser.add_argument("--sizes", nargs="*", type=float, default=[0.15, 0.1])
    parser.add_argument("--latencies", nargs="*", type=float, default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--effort", default="low")
    parser.add_argument("--json", type=Path, help="rows are written to this file as they come")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    if chosen.show:
        show([row for file in chosen.show for row in json.loads(file.read_text())])
        return
    rows: list[Row] = []
    for row in measured(chosen):
        rows.append(row)
        told = {k: v for k, v in row.items() if k != "right"}
        print(told, f"{100 * np.mean(row['right']):.2f}", file=sys.stderr, flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
