"""The claims of the published methods, checked on our models; see docs/methods.md.

    python -m benchmarks.claims [--only TEXT] [--json FILE]
    python -m benchmarks.claims --show FILE ...

Each row sets two ways to do the same beside each other, by the loss on data that neither saw: bits
per byte of 20 held-out windows (stdlib_lm), bits of the label of 500 held-out images (the glyph
models). `less` is what the claimed way loses less, mean over the samples, with the 95 % interval of
a paired bootstrap over them; a claim holds where that is above 0, is refuted where it is below 0,
and is open between. What is random is the mean of five seeds, and its range is that of the seeds.
Checks take one to two and a half minutes of a quiet core; `widths` and `channels, glyph_vit` take
longer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks.orders import Model, bits_of_labels, chosen_windows
from lwqc.compile.steps.removed_branches import remove_planned
from lwqc.compile.version import Version
from lwqc.decide.allocators.evolutionary import Candidate, evolve
from lwqc.decide.allocators.knapsack import choose
from lwqc.decide.allocators.rate_distortion import allocate as dynamic
from lwqc.decide.compress import compress_version, open_version
from lwqc.decide.drop_layers import DropOptions, choose_branches
from lwqc.decide.importance import LayerScore, layer_importance
from lwqc.decide.search.control import EFFORTS, SearchControl
from lwqc.decide.search.scores import measured_errors
from lwqc.decide.search.search_model import search_model
from lwqc.decide.search.start import allocated
from lwqc.decide.search.trial_model import ALL, TrialModel
from lwqc.decide.structural import channel_job
from lwqc.decide.two_levels import Levels
from lwqc.plans.bounds import Amount
from lwqc.plans.goals import Goals
from lwqc.plans.plan import RemovedBranch
from lwqc.plans.recipe import Recipe, find, uniform_recipe
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session
from models import stdlib_lm

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2, 3, 4)
IMAGES = 5  # batches of 100
LEVELS = Levels(WeightFormat.parse("w2b32h"), WeightFormat.parse("w4b32h"))
LM, VIT, RESNET = "stdlib_lm", "glyph_vit", "glyph_resnet"
Losses = NDArray[np.float64]  # by sample
SCORES: tuple[LayerScore, ...] = ("lim", "zd")
Row = dict[str, Any]


def losses(name: str, model: ir.Model) -> Losses:
    """Of every held-out sample."""
    run = Session(model, label="claim")
    return _of_windows(run) if name == LM else bits_of_labels(run)


def _of_windows(run: Session) -> Losses:
    return np.array([stdlib_lm.bits_per_byte(run, [window[None]]) for window in chosen_windows()])


@cache
def work_of(name: str) -> Version:
    """A model with its calibration data."""
    data = "models.stdlib_lm:calibration" if name == LM else "models.glyphs:calibration"
    return open_version(ROOT / f"models/{name}.onnx", data=data)


def row(claim: str, name: str, better: Losses, others: Sequence[Losses]) -> Row:
    """One line: what is claimed to lose less, and what it is compared with, by seed."""
    gained = np.mean(others, axis=0) - better
    rng = np.random.default_rng(0)
    means = gained[rng.integers(0, len(gained), (2000, len(gained)))].mean(1)
    low, high = (float(x) for x in np.quantile(means, (0.025, 0.975)))
    seeds = [float(o.mean()) for o in others]
    return {
        "claim": claim, "model": name, "better": float(better.mean()),
        "other": float(np.mean(seeds)), "range": [min(seeds), max(seeds)],
        "less": float(gained.mean()), "interval": [low, high],
        "holds": "yes" if low > 0 else "no" if high < 0 else "open",
    }  # fmt: skip


def bit_orders(name: str) -> Iterator[Row]:
    """Layer-Wise Quantization: a quarter of the blocks' weights go from 4 to 2 bits."""
    model = Model(name, LEVELS)
    chance = [losses(name, model.made(model.chance(seed), 0.25)) for seed in SEEDS]
    for score in SCORES:
        scores = layer_importance(model.work, score)
        mine = losses(name, model.made(scores, 0.25))
        reversed_ = losses(name, model.made({n: -s for n, s in scores.items()}, 0.25))
        yield row(f"lwq-{score} over random blocks", name, mine, chance)
        yield row(f"lwq-{score} over lwq-{score} reversed", name, mine, [reversed_])


def layers(name: str) -> Iterator[Row]:
    """A quarter of the branches goes; the order is chosen on four windows or 32 images."""
    whole = work_of(name)
    feeds = [{k: v[:, :128] if name == LM else v for k, v in whole.job.data.fit.first().items()}]
    work = open_version(ROOT / f"models/{name}.onnx", data=feeds)

    def made(score: str, seed: int = 0, kind: Any = "any", work: Any = work) -> ir.Model:
        options = DropOptions(share=0.25, score=score, seed=seed, kind=kind, measure="js")
        steps = choose_branches(work, options).curve
        gone = [RemovedBranch(name=n) for step in steps for n in step.branches]
        return remove_planned(work.model, gone)[0]

    greedy = losses(name, made("ablation"))
    similar = losses(name, made("similarity"))
    chance = [losses(name, made("random", seed)) for seed in SEEDS]
    yield row("FinerCut: greedy ablation over similarity", name, greedy, [similar])
    yield row("LLM-Drop: similarity over random branches", name, similar, chance)
    once = losses(name, made("ablation-once"))
    yield row("FinerCut: measured again over measured once", name, greedy, [once])
    blocks = losses(name, made("similarity", kind="block"))
    yield row("LLM-Drop: branches over blocks, a quarter of each", name, similar, [blocks])


def pruned(name: str, recipe: str, **options: Any) -> Losses:
    """Losses of a model with fewer channels."""
    job = channel_job(find(recipe), Goals(), **options)
    return losses(name, job(work_of(name)).make().model)


def channels(name: str) -> Iterator[Row]:
    """A fifth of the products goes (glyph_resnet: 30 %)."""
    ratio = 0.3 if name == RESNET else 0.2
    l2 = pruned(name, "spa-l2", ratio=ratio)
    obspa = pruned(name, "obspa", ratio=ratio)
    yield row("OBSPA over magnitude (spa-l2)", name, obspa, [l2])
    free = pruned(name, "obspa-datafree", ratio=ratio)
    yield row("OBSPA: data over random inputs", name, obspa, [free])
    yield row("OBSPA without data over magnitude", name, free, [l2])
    for recipe in ("spa-lamp", "fpgm", "wanda"):
        yield row(f"{recipe} over spa-l2", name, pruned(name, recipe, ratio=ratio), [l2])
    same = {"by": "channels", "scope": "local", "ratio": ratio}
    fine = pruned(name, "wanda", score="cfsp", **same)
    yield row("CFSP's fine criterion over Wanda's, same widths", name, fine,
              [pruned(name, "wanda", **same)])  # fmt: skip


def quantized(name: str, recipe: str | Recipe) -> Losses:
    """Losses of a model by a recipe as it is."""
    return losses(name, compress_version(work_of(name), Goals(), recipe).model)


def uniform(name: str, bits: int, method: str) -> Losses:
    """Losses of a model with all weights alike."""
    recipe = uniform_recipe(bits, "none", "mse", True, method)
    return losses(name, compress_version(work_of(name), Goals(), recipe).model)


def codes(name: str) -> Iterator[Row]:
    """Codes in blocks of 32 in three bits, where methods are told apart."""
    plain = uniform(name, 3, "rtn")
    gptq = uniform(name, 3, "gptq-order")
    yield row("GPTQ over rounding to nearest, 3 bits", name, gptq, [plain])
    yield row("coordinate descent over GPTQ, 3 bits", name, uniform(name, 3, "descent"), [gptq])
    yield row("GPFQ over rounding to nearest, 3 bits", name, uniform(name, 3, "gpfq"), [plain])
    yield row("HQQ over rounding to nearest, 3 bits", name, uniform(name, 3, "hqq"), [plain])


def recipes(name: str) -> Iterator[Row]:
    """Recipes beside what they add to."""
    w4, gptq = quantized(name, "w4"), quantized(name, "gptq")
    for recipe in ("awq", "gpfq", "spqr-columns", "rsq"):
        over, base = ("w4", w4) if recipe == "awq" else ("gptq", gptq)
        yield row(f"{recipe} over {over}", name, quantized(name, recipe), [base])
    lorc = quantized(name, "lorc")
    alone = quantized(name, find("lorc").model_copy(update={"rank": 0}))
    yield row("lorc: its branch over none", name, lorc, [alone])
    static = quantized(name, "w8a8-static")
    yield row("smoothquant over w8a8-static", name, quantized(name, "smoothquant"), [static])


def grained(name: str) -> Iterator[Row]:
    """4-bit weights that are 8 bits at run time."""
    recipe = find("dgq")
    dual = quantized(name, recipe)
    unmoved, blocks = (
        quantized(name, recipe.model_copy(update=change))
        for change in ({"migrate": "none"}, {"format": None})
    )
    yield row("dgq: its smoothing over none", name, dual, [unmoved])
    yield row("dgq: whole multiples over float scales", name, dual, [blocks])
    integers = find("zeroquant-fp").model_copy(update={"format": recipe.format})
    yield row("zeroquant-fp: FP4 over 4-bit integers", name, quantized(name, "zeroquant-fp"),
              [quantized(name, integers)])  # fmt: skip


def directions(name: str) -> Iterator[Row]:
    """Residual streams lose a quarter of their width."""
    each, shared = (pruned(name, r, ratio=0.25) for r in ("slicegpt", "slicegpt-shared"))
    yield row("SliceGPT: a basis for each branch over one for all", name, each, [shared])


def within(name: str, recipe: str | Recipe, share: float) -> Losses:
    """Losses of a model within a share of the original's size."""
    goals, control = Goals(max_size=Amount(share, True)), SearchControl(effort="low")
    return losses(name, compress_version(work_of(name), goals, recipe, control).model)


def widths(name: str) -> Iterator[Row]:
    """Widths alone, for 0.7 of the bytes."""
    evolved, curves, alone, sensitive, angles = (
        within(name, recipe, 0.7) for recipe in ("evopress-width", "rd", "optin", "ecoflap", "cfsp")
    )
    yield row("evopress-width over rd, 0.7 of the size", name, evolved, [curves])
    yield row("evopress-width over optin, 0.7 of the size", name, evolved, [alone])
    section = find("optin").search_in
    assert section is not None
    outputs = section.model_copy(update={"errors": "measured"})
    plain = find("optin").model_copy(update={"search_in": outputs})
    yield row(
        "optin over its knapsack without features, 0.7", name, alone, [within(name, plain, 0.7)]
    )
    yield row("rd over ecoflap, 0.7 of the size", name, curves, [sensitive])
    yield row("rd over cfsp, 0.7 of the size", name, curves, [angles])
    yield row("ecoflap over cfsp, 0.7 of the size", name, sensitive, [angles])


def formats(name: str) -> Iterator[Row]:
    """Formats alone, for 0.17 of the bytes."""
    exact, ranked, pairs, evolved = (
        within(name, r, 0.17) for r in ("knapsack", "lwq-lim", "clado", "evopress-bits")
    )
    yield row("knapsack over lwq-lim, 0.17 of the size", name, exact, [ranked])
    yield row("clado over knapsack, 0.17 of the size", name, pairs, [exact])
    yield row("evopress-bits over knapsack, 0.17 of the size", name, evolved, [exact])


def evolution(name: str) -> Iterator[Row]:
    """Branches alone, whose errors do not add up: evolution beside exact sums of single errors.

    Evolution starts at the knapsack's choice; its losses are the mean of five seeds. Nothing makes
    up for what goes.
    """
    work, settings = work_of(name), EFFORTS["low"]
    found = search_model(work, {"branch"})
    space, trial = found.space, TrialModel(found.spec)

    @cache
    def known(candidate: Candidate, stage: int) -> float:
        return trial.score(candidate, stage)

    def score(candidates: Sequence[Candidate], stage: int) -> list[float]:
        return [known(c, ALL if stage == settings.stages - 1 else stage) for c in candidates]

    def cost(candidate: Candidate) -> float:
        return space.cost(candidate)["size_bytes"]

    @cache
    def left(candidate: Candidate) -> Losses:
        pairs = zip(space.items, candidate, strict=True)
        gone = [RemovedBranch(name=item.name) for item, level in pairs if level == 0]
        return losses(name, remove_planned(work.model, gone)[0])

    measured_errors(space, lambda trials: score(trials, settings.stages - 1))
    for share in (0.7, 0.5):
        limit, items = share * cost(space.top), range(len(space.items))
        exact, curves = (
            allocated(space, space.top, items, cost, limit, allocate)
            for allocate in (choose, dynamic)
        )
        assert exact is not None
        assert curves is not None
        evolved = [
            evolve(space.sizes, lambda c, limit=limit: cost(c) <= limit, exact, score,
                   replace(settings, seed=seed)).best
            for seed in SEEDS
        ]  # fmt: skip
        mean = np.mean([left(candidate) for candidate in evolved], axis=0)
        for rival, other in (("knapsack", exact), ("dynamic programming", curves)):
            yield row(f"EvoPress over {rival}, branches, {share} of the size", name, mean,
                      [left(other)])  # fmt: skip


CHECKS: dict[str, tuple[Callable[[str], Iterator[Row]], tuple[str, ...]]] = {
    "bit orders": (bit_orders, (LM, VIT)),
    "layers": (layers, (LM, VIT)),
    "channels": (channels, (RESNET, VIT)),
    "codes": (codes, (LM, VIT)),
    "recipes": (recipes, (LM, VIT)),
    "grained": (grained, (LM, VIT)),
    "directions": (directions, (LM, VIT)),
    "widths": (widths, (VIT,)),
    "formats": (formats, (VIT,)),
    "evolution": (evolution, (VIT,)),
}


def show(rows: Sequence[Row]) -> None:
    """Markdown."""
    print("| claim | model | claimed | other | less | 95 % interval | holds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for r in rows:
        low, high = r["interval"]
        least, most = r["range"]
        other = f"{r['other']:.4f}" + (f" ({least:.4f} to {most:.4f})" if least < most else "")
        print(
            f"| {r['claim']} | {r['model']} | {r['better']:.4f} | {other} | {r['less']:.4f} "
            f"| {low:.4f} to {high:.4f} | {r['holds']} |"
        )


def main() -> None:
    """Measure and print, or only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="checks with this text: codes, or codes, glyph_vit"
    )
    parser.add_argument("--json", type=Path, help="rows are written to this file as they come")
    parser.add_argument("--show", type=Path, nargs="*", help="only print the rows of these files")
    chosen = parser.parse_args()
    if chosen.show:
        show([found for file in chosen.show for found in json.loads(file.read_text())])
        return
    rows: list[Row] = []
    checks = [(f"{c}, {m}", make, m) for c, (make, models) in CHECKS.items() for m in models]
    for label, check, model in checks:
        if chosen.only not in label:
            continue
        start = time.perf_counter()
        for found in check(model):
            rows.append(found)
            print(found, file=sys.stderr, flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{label}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    show(rows)


if __name__ == "__main__":
    main()
