"""One search over bits, widths and layers, beside each of them alone, at equal budgets.

python benchmarks/search.py [--models NAME ...] [--sizes S ...] [--latencies L ...] [--json FILE]
python benchmarks/search.py --speed [--models NAME ...]
python benchmarks/search.py --show FILE

Each row is a recipe under a budget: what is saved is measured, on the task's held-back metric. The
first seed of `auto` starts from nothing, so its seconds are those of a run; all others share the
statistics that they have in common. With
`--speed`: candidates evaluated per second on one session, and with a session built for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lwqc.compile.execute import execute
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import mutated
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.search.control import SearchControl
from lwqc.decide.search.joint_plan import planned
from lwqc.decide.search.search_model import search_model
from lwqc.decide.search.start import starts
from lwqc.decide.search.trial_model import TrialModel
from lwqc.errors import InputError
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
# name -> (file in models/, calibration data, metric on held-back data)
MODELS = {
    "glyph_resnet": ("glyph_resnet", "models.glyphs:calibration", "models.glyphs:accuracy"),
    "glyph_vit": ("glyph_vit", "models.glyphs:calibration", "models.glyphs:accuracy"),
    "stdlib_lm": ("stdlib_lm", "models.stdlib_lm:calibration", "models.stdlib_lm:bits_per_byte"),
    "minilm": ("minilm", "models.minilm:calibration", "models.minilm:cosine"),
}
# Under a size: one format, by rank, by knapsack, by evolution over bits, over widths, over layers.
SIZE_METHODS = (
    "w8", "w4", "lwq-lim", "lwq-zd", "knapsack", "clado", "evopress-bits", "evopress-width",
    "evopress-depth", "auto",
)  # fmt: skip
LATENCY_METHODS = ("w8a8-dynamic", "w8a8-static", "evopress-width", "evopress-depth", "auto")
_FIXED = {"w8", "w4", "w8a8-dynamic", "w8a8-static"}  # these know no budget


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--sizes", nargs="*", type=float, default=[0.35, 0.25, 0.15])
    parser.add_argument("--latencies", nargs="*", type=float, default=[0.5, 0.3])
    parser.add_argument("--methods", nargs="*", help="only these recipes")
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--json", type=Path, help="rows are added to this file as they come")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    if chosen.show:
        show([row for file in chosen.show for row in json.loads(file.read_text())])
        return
    rows: list[Row] = []
    found = map(speed, chosen.models) if chosen.speed else measured(chosen)
    for row in found:
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


def measured(chosen: argparse.Namespace) -> Iterator[Row]:
    """All rows that were asked for."""
    for name in chosen.models:
        shared = opened(name)
        for kind, budgets, methods in (
            ("size", chosen.sizes, SIZE_METHODS),
            ("latency", chosen.latencies, LATENCY_METHODS),
        ):
            for budget in budgets:
                for method in methods:
                    if chosen.methods and method not in chosen.methods:
                        continue
                    seeds = chosen.seeds if method == "auto" else chosen.seeds[:1]
                    for seed in seeds:
                        fresh = method == "auto" and seed == seeds[0]
                        row: Row = {"model": name, "kind": kind, "budget": budget}
                        work = opened(name) if fresh else shared
                        yield row | compressed(work, kind, budget, method, seed, chosen.effort)


def opened(name: str) -> Version:
    """The model with its data and its metric."""
    file, data, metric = MODELS[name]
    path = Path(file) if file.endswith(".onnx") else ROOT / "models" / f"{file}.onnx"
    return open_version(path, data=data, metric=metric)


def compressed(work: Version, kind: str, budget: float, method: str, seed: int, effort: str) -> Row:
    """One recipe under one budget, measured on what it saves."""
    row: Row = {"method": method, "seed": seed}
    amount = Amount(budget, True)
    goals = Goals(max_size=amount) if kind == "size" else Goals(max_latency=amount)
    control = SearchControl(effort=effort, seed=seed)
    start = time.perf_counter()
    try:
        done = compress_version(work, Goals() if method in _FIXED else goals, method, control)
    except InputError as error:
        return {**row, "error": str(error)}
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        report = done.save(Path(folder) / "out.onnx")
    return {
        **row,
        "float": report.metric_before,
        "metric": report.metric_after,
        "size": report.output_bytes / report.source_bytes,
        "latency": 1 / report.latencies[0].speedup,
        "seconds": round(seconds, 1),
        "evaluations": report.search.evaluations if report.search else None,
    }


def speed(name: str, generations: int = 40, offspring: int = 16, few: int = 8) -> Row:
    """Evaluations per second of what a search asks for: on one session, and with one for each.

    Candidates are the offspring of as many generations as a search has by default, of random drift
    under a budget of a fifth of the size, so levels come up again and again, as in a search; those
    that come up first are made on the way. Both score on the same first batches. On the session the
    weights make up for removed channels in closed form; rebuilt candidates are timed without that
    and with the refit that does the same for them.
    """
    work = opened(name)
    found = search_model(work, {"format", "width", "branch"})
    space, rng = found.space, np.random.default_rng(0)
    limit = 0.2 * work.original.size_bytes

    def size(candidate: tuple[int, ...]) -> float:
        return space.cost(candidate)["size_bytes"]

    def fits(candidate: tuple[int, ...]) -> bool:
        return size(candidate) <= limit

    parent = starts(space, size, limit, fits)[0]
    candidates = []
    for _ in range(generations):
        children = [mutated(rng, parent, space.sizes, fits) for _ in range(offspring)]
        candidates += [child for child in children if child is not None]
        parent = candidates[-1]
    trial = TrialModel(found.spec)
    start = time.perf_counter()
    for candidate in candidates:
        trial.score(candidate, 0)
    one = len(candidates) / (time.perf_counter() - start)
    taken: dict[bool, list[float]] = {False: [], True: []}
    for compensate, count in ((False, few), (True, 2)):
        for candidate in candidates[:: len(candidates) // count][:count]:
            start = time.perf_counter()
            rebuilt(work, found, candidate, compensate)
            taken[compensate].append(time.perf_counter() - start)
    plain, refitted = (1 / statistics.median(taken[c]) for c in (False, True))
    return {
        "model": name,
        "one session": one,
        "rebuilt": plain,
        "rebuilt and refitted": refitted,
        "ratio": one / plain,
    }


def rebuilt(work: Version, found: Any, candidate: tuple[int, ...], compensate: bool) -> None:
    """The candidate as a model of its own, loaded and run on the same batches."""
    plan = planned(found, candidate, "", compensate=compensate)
    session = Session(execute(work, Goals(), plan).model, label="candidate")
    for feeds in found.spec.batches[: found.spec.stages[0]]:
        session(feeds)


def show(rows: Sequence[Row]) -> None:
    """Markdown: a table per model and kind of budget, one column per budget."""
    for row in (r for r in rows if "ratio" in r):
        print(
            f"| {row['model']} | {row['one session']:.1f} | {row['rebuilt']:.2f} "
            f"| {row['rebuilt and refitted']:.3f} | {row['ratio']:.1f} |"
        )
    named = [r for r in rows if "kind" in r]
    for model, kind in dict.fromkeys((r["model"], r["kind"]) for r in named):
        mine = [r for r in named if (r["model"], r["kind"]) == (model, kind)]
        budgets = sorted({r["budget"] for r in mine}, reverse=True)
        whole = next((r["float"] for r in mine if "float" in r), float("nan"))
        print(f"\n### {model}, {kind} (original {whole:.4f})\n")
        print("| method | " + " | ".join(f"{b:g}" for b in budgets) + " | seconds |")
        print("| --- |" + " ---: |" * (len(budgets) + 1))
        for method in dict.fromkeys(r["method"] for r in mine):
            cells = [cell([r for r in mine if (r["method"], r["budget"]) == (method, b)], kind)
                     for b in budgets]  # fmt: skip
            taken = [r["seconds"] for r in mine if r["method"] == method and "seconds" in r]
            spent = f"{statistics.median(taken):.0f}" if taken else ""
            print(f"| {method} | " + " | ".join(cells) + f" | {spent} |")


def cell(rows: Sequence[Row], kind: str) -> str:
    """Metric (mean over seeds, and range) at the share of the original that was reached."""
    done = [r for r in rows if "metric" in r]
    if not done:
        return "cannot" if rows else ""
    values = [r["metric"] for r in done]
    text = f"{statistics.mean(values):.4f}"
    if len(values) > 1:
        text += f" ({min(values):.4f} … {max(values):.4f})"
    return f"{text} at {max(r[kind] for r in done):.3f}"


if __name__ == "__main__":
    main()
