"""Which layers get few bits first: quality against the share of the weights that was moved.

    python -m benchmarks.orders [--models NAME ...] [--low w2b32h] [--high w4b32h] [--json FILE]
    python -m benchmarks.orders --show FILE ...

All weights of the residual blocks start in the high format, and the order moves them to the low one
until a share of them is there; the rest of the model stays in the high format. Orders: the recipes
`lwq-lim` (branches) and `lwq-zd` (blocks), both reversed; LIM by blocks; ZD by matrices, as a
reader may take the paper's eq. 2; both scores of blocks combined, by the higher of their ranks and
by weights that were learned on the other model from what the outputs lose by each block alone; and
blocks at random, mean and range over seeds. The loss is taken on data that no score saw: bits per
byte of 20 held-out windows (stdlib_lm), bits of the label of 500 held-out images (glyph_vit).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.special import log_softmax

from lwqc.compile.candidates import with_formats
from lwqc.compile.version import Version
from lwqc.decide.compress import open_version
from lwqc.decide.importance import layer_importance, sites_of
from lwqc.decide.mixed import measured_together, stored_bytes
from lwqc.decide.scores.branches.similarity import branch_effects
from lwqc.decide.scores.zero_deviation import zd
from lwqc.decide.two_levels import Levels, ranked
from lwqc.graph.branch_kinds import branch_tree
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session, statistics_session
from models import glyphs, stdlib_lm

ROOT = Path(__file__).parents[1]
SHARES = (1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 3 / 4)
SEEDS = (0, 1, 2)
WINDOWS, IMAGES = 20, 5  # batches of 100 images
Row = dict[str, Any]
Scores = Mapping[str, float]  # by site


def chosen_windows() -> NDArray[np.int64]:
    """Windows spread over the held-back text, [WINDOWS, tokens]."""
    windows = np.concatenate(list(stdlib_lm.test_windows()))
    return windows[np.linspace(0, len(windows) - 1, WINDOWS).astype(int)]


def bits_per_byte(run: Session) -> float:
    """Of those windows."""
    return stdlib_lm.bits_per_byte(run, np.split(chosen_windows(), WINDOWS // 4))


def bits_of_labels(run: Session) -> NDArray[np.float64]:
    """Negative log2 probabilities of the held-back images' labels."""
    with np.load(glyphs.DATA) as data:
        labels = np.split(data["test_labels"], len(data["test_labels"]) // 100)
    logs = [
        -log_softmax(run(feeds)["logits"].astype(np.float64), -1)[np.arange(len(right)), right]
        for feeds, right in itertools.islice(zip(glyphs.test_feeds(), labels, strict=True), IMAGES)
    ]
    return np.asarray(np.concatenate(logs) / np.log(2))


def bits_per_label(run: Session) -> float:
    """Their mean."""
    return float(bits_of_labels(run).mean())


LOSSES: dict[str, tuple[str, str, Callable[[Session], float]]] = {
    "stdlib_lm": ("models/stdlib_lm.onnx", "models.stdlib_lm:calibration", bits_per_byte),
    "glyph_vit": ("models/glyph_vit.onnx", "models.glyphs:calibration", bits_per_label),
}


class Model:
    """A model with the scores of its blocks, and the loss of an order at a share."""

    def __init__(self, name: str, levels: Levels) -> None:
        file, data, self._loss = LOSSES[name]
        self.work: Version = open_version(ROOT / file, data=data)
        self.levels = levels
        blocks = branch_tree(self.work.model.graph).blocks
        self.units = {block[0].name: [b.branch for b in block] for block in blocks}
        self.sites = {n: s for n, s in sites_of(self.work, self.units).items() if s}
        inside = {site for names in self.sites.values() for site in names}
        self._entries = {
            s.name: levels.of(self.work, s) for s in self.work.analysis.sites if s.name in inside
        }
        self._high, self._low = (
            sum(stored_bytes(self.work, self.work.sites[n], e[i]) for n, e in self._entries.items())
            for i in (1, 0)
        )
        self._rest = sum(
            stored_bytes(self.work, s, levels.of(self.work, s)[1])
            for s in self.work.analysis.sites
            if s.name not in inside
        )

    def loss(self, scores: Scores, share: float) -> float:
        """With the share of the blocks' weights of least score in the low format."""
        return self._loss(self.work.job.load(self.made(scores, share)))

    def made(self, scores: Scores, share: float) -> ir.Model:
        """The model in these formats."""
        budget = self._rest + self._high - share * (self._high - self._low)
        plan = ranked(self.work, scores, budget, self.levels, "order")
        return with_formats(self.work, plan).model

    def float_loss(self) -> float:
        """Of the model as it is."""
        return self._loss(self.work.original.session)

    def spread(self, scores: Scores) -> Scores:
        """Scores of blocks, by site."""
        return {site: scores[name] for name, names in self.sites.items() for site in names}

    def block_scores(self) -> tuple[dict[str, float], dict[str, float]]:
        """LIM and ZD of blocks; higher is more important."""
        found = branch_effects(
            self.work.model, self.units, self.work.job.data.fit, statistics_session
        )
        zds = layer_importance(self.work, "zd")
        return (
            {name: found[name].lim for name in self.sites},
            {name: zds[names[0]] for name, names in self.sites.items()},
        )

    def costs(self) -> dict[str, float]:
        """What the outputs lose on the calibration data by each block alone in the low format."""
        trials = {name: tuple(names) for name, names in self.sites.items()}
        probe = SiteEntry(weight=self.levels.low)
        found = measured_together(self.work, list(trials.values()), probe)
        return {name: found[trial] for name, trial in trials.items()}

    def matrix_zd(self) -> Scores:
        """ZD of each matrix for itself."""
        return {n: -zd(np.asarray(self.work.weights.weight(n))) for n in self._entries}

    def chance(self, seed: int) -> Scores:
        """Blocks in random order."""
        order = np.random.default_rng(seed).permutation(len(self.sites))
        return self.spread(dict(zip(self.sites, map(float, order), strict=True)))


def ranks(scores: Scores) -> dict[str, float]:
    """From 0, the least important, to 1."""
    order = np.argsort(np.argsort(list(scores.values()))) / max(len(scores) - 1, 1)
    return dict(zip(scores, map(float, order), strict=True))


def learned(models: Mapping[str, Model]) -> dict[str, tuple[float, float]]:
    """By model: weights of the ranks by LIM and ZD, least squares on the cost's on all others."""
    found = {}
    for name in models:
        rows = [
            (lim[unit], zds[unit], cost[unit])
            for other, model in models.items()
            if other != name
            for lim, zds, cost in [(*map(ranks, model.block_scores()), ranks(model.costs()))]
            for unit in model.sites
        ]
        if rows:
            table = np.array(rows) - 0.5
            weights, *_ = np.linalg.lstsq(table[:, :2], table[:, 2])
            found[name] = (float(weights[0]), float(weights[1]))
    return found


def orders(model: Model, weights: tuple[float, float] | None) -> Iterator[tuple[str, Scores]]:
    """Name of an order, and its scores by site."""
    lim, zds = model.block_scores()
    by_branch, by_block = (layer_importance(model.work, s) for s in ("lim", "zd"))
    yield "lwq-lim (branches)", by_branch
    yield "lwq-zd (blocks)", by_block
    yield "LIM, blocks", model.spread(lim)
    both = {
        name: max(a, b)
        for (name, a), b in zip(ranks(lim).items(), ranks(zds).values(), strict=True)
    }
    yield "LIM and ZD, higher rank", model.spread(both)
    if weights is not None:
        a, b = weights
        told = {
            n: a * x + b * y
            for (n, x), y in zip(ranks(lim).items(), ranks(zds).values(), strict=True)
        }
        yield "LIM and ZD, learned", model.spread(told)
    yield "ZD, matrices", model.matrix_zd()
    for seed in SEEDS:
        yield f"random blocks {seed}", model.chance(seed)
    yield "lwq-lim reversed", {name: -score for name, score in by_branch.items()}
    yield "lwq-zd reversed", {name: -score for name, score in by_block.items()}


def measured(names: Sequence[str], levels: Levels) -> Iterator[Row]:
    """All rows."""
    models = {name: Model(name, levels) for name in names}
    weights = learned(models)
    for name, model in models.items():
        base = {"model": name, "low": str(levels.low), "high": str(levels.high)}
        first = model.matrix_zd()
        yield {**base, "order": "float", "share": 0.0, "loss": model.float_loss()}
        yield {**base, "order": "all high", "share": 0.0, "loss": model.loss(first, 0.0)}
        yield {**base, "order": "all low", "share": 1.0, "loss": model.loss(first, 1.0)}
        if name in weights:
            print(f"{name}: learned weights {weights[name]}", file=sys.stderr)
        for order, scores in orders(model, weights.get(name)):
            for share in SHARES:
                yield {**base, "order": order, "share": share, "loss": model.loss(scores, share)}


def show(rows: Sequence[Row]) -> None:
    """Markdown, a table per model and pair of formats."""
    for key in dict.fromkeys((r["model"], r["high"], r["low"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["high"], r["low"]) == key]
        ends = {r["order"]: r["loss"] for r in mine if r["share"] in (0.0, 1.0)}
        told = ", ".join(f"{order} {loss:.4f}" for order, loss in ends.items())
        print(f"\n### {key[0]}, {key[1]} to {key[2]}: {told}\n")
        print("| share moved | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
        print("| --- |" + " ---: |" * len(SHARES))
        curves: dict[str, list[list[float]]] = {}
        for r in mine:
            if r["order"] not in ends:
                order = "random blocks" if r["order"].startswith("random") else r["order"]
                at = SHARES.index(r["share"])
                curves.setdefault(order, [[] for _ in SHARES])[at].append(r["loss"])
        for order, points in curves.items():
            print(f"| {order} | " + " | ".join(map(_cell, points)) + " |")


def _cell(losses: Sequence[float]) -> str:
    mean = f"{np.mean(losses):.4f}" if losses else ""
    return f"{mean} ({min(losses):.4f} to {max(losses):.4f})" if losses[1:] else mean


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(LOSSES))
    parser.add_argument("--low", default="w2b32h")
    parser.add_argument("--high", default="w4b32h")
    parser.add_argument("--json", type=Path, help="rows are written to this file as they come")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    if chosen.show:
        show([found for file in chosen.show for found in json.loads(file.read_text())])
        return
    levels = Levels(WeightFormat.parse(chosen.low), WeightFormat.parse(chosen.high))
    rows: list[Row] = []
    for found in measured(chosen.models, levels):
        rows.append(found)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
