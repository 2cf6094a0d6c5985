"""What gradients give back: the metric before and after `lwqc.recover`, and with learned codes.

    python -m benchmarks.recovery macs MODEL ... | branches | bits | blocks MODEL ...
        | rounding MODEL ... | codebooks MODEL ... | scales MODEL ... | ranges MODEL ...
        | search MODEL ...
        [--seconds S] [--steps N] [--lr R] [--images N] [--windows N] [--json FILE]

macs: half of the multiply-accumulates of a glyph model go, then the rest is fitted to the original
on so many training images, for so many seconds by the clock, or so many steps. branches: the same
with half of the branches of stdlib_lm, on windows of training files, its logits as numbers and as
probabilities. bits: all weights of stdlib_lm in 2 bits by formula, and by the recipe `distill` with
that many steps. blocks: a glyph model in 3 bits, learned by residual blocks (`brecq`) and by as
many that entropy joins (`qvlm`), the same steps each, three seeds; `bits` are those of the label,
of 500 test images. rounding: a glyph model in 3 and 2 bits by formulas, and by the recipe
`adaround` with that many steps. codebooks: all weights as indices into codebooks by formula, and
with the entries of the codebooks and all other floats fitted; stdlib_lm in 2 bits, its logits as
probabilities, glyph models in 3, each layer in sequence. scales: a glyph model in 3 bits, fitted
with the scales of its codes as they are, and with them. ranges: a glyph model with 8-bit weights
and static activations, fitted with the ranges as they are, and with them. search: `auto` within 8 %
of the bytes and within 35 % of the MACs, alone, with a fit of 150 steps after it, and with one that
the search knows of. The metric is that of `models/`, on data that nothing was fitted to; `drop` is
what the outputs lose on it. `cpu` is processor time of all threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir

import lwqc
from benchmarks.orders import bits_per_label
from lwqc.learn.fitted_scales import FittedScales
from lwqc.model import io
from lwqc.plans.plan import Learn, Parts
from lwqc.plans.recipe import find
from lwqc.runtime.session import Session
from models import digits, glyphs, stdlib_lm
from models.byte_pairs import BytePairs
from models.glyph_images import TRAIN_FONTS, make

ROOT = Path(__file__).parents[1] / "models"
GLYPHS = ("glyph_mobilenet", "glyph_shufflenet", "glyph_vit", "glyph_resnet")
IMAGES, BATCH, SEED = 25_600, 32, 77
WINDOWS, LENGTH, TOGETHER = 640, 256, 4
Feeds = list[dict[str, np.ndarray[Any, Any]]]
Row = dict[str, Any]


def images(count: int = IMAGES, seed: int = SEED) -> Feeds:
    """Training images of a seed that no model saw: `image` [32, 1, 32, 32]."""
    drawn = glyphs.as_input(make(count, seed, fonts=TRAIN_FONTS).pixels)
    return [{"image": drawn[i : i + BATCH]} for i in range(0, count, BATCH)]


def windows(count: int = WINDOWS) -> Feeds:
    """Windows of training files: `input_ids` [4, 256]."""
    from models.stdlib_lm_training import token_stream

    stream = token_stream(BytePairs.load(stdlib_lm.VOCABULARY))
    starts = np.random.default_rng(SEED).integers(0, len(stream) - LENGTH, count)
    ids = stream[starts[:, None] + np.arange(LENGTH)]
    return [{"input_ids": ids[i : i + TOGETHER]} for i in range(0, count, TOGETHER)]


def scales(name: str, steps: int, out: Path | None) -> None:
    """3 bits by formula, and fitted without and with the scales."""
    teacher, table = io.load(ROOT / f"{name}.onnx"), Table(name, glyphs.accuracy, out)
    data = images(80 * BATCH)
    small = lwqc.quantize(teacher, bits=3, method="descent", data=data[:8]).model
    table.row("descent", small)
    options: Any = {"teacher": teacher, "data": data, "steps": steps, "parts": "none"}
    with patch("lwqc.learn.to_torch.FittedScales.of", lambda *args: FittedScales()):
        done = lwqc.recover(small, **options)
    table.row("codes", done.model, loss=[done.report.loss_before, done.report.loss_after])
    done = lwqc.recover(small, **options)
    table.row("and scales", done.model, loss=[done.report.loss_before, done.report.loss_after])


def ranges(name: str, steps: int, out: Path | None) -> None:
    """Static activations: ranges of 128 images, and fitted without and with them."""
    teacher, table = io.load(ROOT / f"{name}.onnx"), Table(name, glyphs.accuracy, out)
    data = images(160 * BATCH)
    table.row("float", teacher)
    small = lwqc.compress(teacher, recipe="w8a8-static", data=data[:4]).model
    unseen = glyphs.test_feeds()

    def row(what: str, model: ir.Model, **more: Any) -> None:
        (loss,) = lwqc.verify(teacher, model, data=unseen).values()
        table.row(what, model, drop=round(loss.drop, 5), **more)

    row("w8a8-static", small)
    options: Any = {"teacher": teacher, "data": data, "steps": steps, "parts": "none"}
    with patch("lwqc.learn.fitted_scales.activation_grids", lambda *args: ([], {})):
        done = lwqc.recover(small, **options)
    row("codes", done.model, loss=[done.report.loss_before, done.report.loss_after])
    done = lwqc.recover(small, **options)
    row("and ranges", done.model, loss=[done.report.loss_before, done.report.loss_after])


def digit_images() -> tuple[Feeds, Feeds]:
    """Training and test images: `image` [32, 1, 8, 8]."""
    made = digits.make_data()
    parts = (made[f"{part}_images"] / np.float32(16) for part in ("train", "test"))
    found = [
        [{"image": x[i : i + BATCH, None].astype(np.float32)} for i in range(0, len(x), BATCH)]
        for x in parts
    ]
    return found[0], found[1]


class Table:
    """Rows as they come."""

    def __init__(self, model: str, metric: Callable[..., float], out: Path | None) -> None:
        """out: where rows are appended as JSON."""
        self._model, self._metric, self._out = model, metric, out
        self._cpu = time.process_time()

    def row(self, what: str, model: ir.Model, **more: Any) -> None:
        """Measure and print."""
        value = self._metric(Session(model, label=what))
        spent = time.process_time() - self._cpu
        found: Row = {
            "model": self._model, "what": what, "metric": round(value, 4),
            "bytes": io.serialized_bytes(model), "cpu": round(spent), **more,
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        if self._out is not None:
            with self._out.open("a") as file:
                file.write(json.dumps(found) + "\n")
        self._cpu = time.process_time()


def recovered(table: Table, small: ir.Model, teacher: ir.Model, data: Feeds, **more: Any) -> None:
    """A row for the fitted model."""
    done = lwqc.recover(small, teacher=teacher, data=data, **more)
    report = done.report
    told = {"steps": report.steps, "loss": [report.loss_before, report.loss_after]}
    what = f"recovered {more}"
    table.row(what, done.model, **told, unchanged=report.unchanged)


def macs(name: str, count: int, ends: Row, lr: float, out: Path | None) -> None:
    """Half of the multiply-accumulates. ends: when a fit does."""
    teacher, table = io.load(ROOT / f"{name}.onnx"), Table(name, glyphs.accuracy, out)
    data = images(count)
    table.row("float", teacher)
    small = lwqc.prune(teacher, ratio=0.5, data=data[:40]).model
    table.row("half of the MACs", small)
    recovered(table, small, teacher, data, lr=lr, **ends)


def branches(data: Feeds, ends: Row, lr: float, out: Path | None) -> None:
    """Half of the branches."""
    teacher = io.load(stdlib_lm.MODEL)
    table = Table("stdlib_lm", stdlib_lm.bits_per_byte, out)
    table.row("float", teacher)
    small = lwqc.drop_layers(teacher, branches=0.5, data=data[:8]).model
    table.row("half of the branches", small)
    recovered(table, small, teacher, data, lr=lr, logits=["logits"], **ends)


def codebooks(name: str, data: Feeds, ends: Row, lr: float, out: Path | None) -> None:
    """By formula, and fitted."""
    language = name == "stdlib_lm"
    teacher = io.load(stdlib_lm.MODEL if language else ROOT / f"{name}.onnx")
    table = Table(name, stdlib_lm.bits_per_byte if language else glyphs.accuracy, out)
    how: Any = {"format": "vq4x2" if language else "vq6x2", "sequential": not language}
    table.row("float", teacher)
    small = lwqc.quantize(teacher, method="descent", data=data[: 16 if language else 80], **how)
    table.row(how["format"], small.model)
    more: Row = {"logits": ["logits"]} if language else {}
    recovered(table, small.model, teacher, data, lr=lr, **more, **ends)


def bits(steps: int, out: Path | None) -> None:
    """2 bits by formula, and by gradients for each part and then of the whole."""
    teacher = io.load(stdlib_lm.MODEL)
    table, data = Table("stdlib_lm", stdlib_lm.bits_per_byte, out), windows(WINDOWS // 4)
    table.row("descent", lwqc.quantize(teacher, bits=2, method="descent", data=data[:16]).model)
    learn = Learn(steps=steps)
    recipe = find("distill").model_copy(update={"bits": 2, "learn": learn})
    table.row(f"distill, {steps} steps", lwqc.compress(teacher, recipe=recipe, data=data).model)


def blocks(name: str, steps: int, out: Path | None) -> None:
    """3 bits by formula, and learned in parts of two kinds."""
    teacher, table = io.load(ROOT / f"{name}.onnx"), Table(name, glyphs.accuracy, out)
    kinds: tuple[Parts, ...] = ("blocks", "entropy")
    for seed in range(3):
        data = images(80 * BATCH, SEED + seed)
        plain = lwqc.quantize(teacher, bits=3, method="descent", data=data).model
        _with_bits(table, f"descent, seed {seed}", plain)
        for kind in kinds:
            learn = Learn(steps=steps, seed=seed, parts=kind, whole=False)
            recipe = find("brecq").model_copy(update={"bits": 3, "learn": learn})
            done = lwqc.compress(teacher, recipe=recipe, data=data)
            told = [note for note in done.plan.notes if note.startswith("learned")]
            _with_bits(table, f"{kind}, seed {seed}", done.model, notes=told)


def rounding(name: str, steps: int, out: Path | None) -> None:
    """3 and 2 bits by formulas, and learned layer by layer."""
    teacher, table = io.load(ROOT / f"{name}.onnx"), Table(name, glyphs.accuracy, out)
    data = images(80 * BATCH)
    table.row("float", teacher)
    for bits in (3, 2):
        for method in ("gptq-order", "descent"):
            made = lwqc.quantize(teacher, bits=bits, method=method, data=data).model
            table.row(f"{method}, {bits} bits", made)
        changes = {"bits": bits, "learn": Learn(steps=steps, parts="layers", whole=False)}
        recipe = find("adaround").model_copy(update=changes)
        done = lwqc.compress(teacher, recipe=recipe, data=data)
        table.row(f"adaround, {bits} bits", done.model)


def _with_bits(table: Table, what: str, model: ir.Model, **more: Any) -> None:
    table.row(what, model, bits=round(bits_per_label(Session(model, label=what)), 4), **more)


def search(name: str, out: Path | None) -> None:
    """A search and a fit after it, without and with what trial fits say of each kind of change."""
    small = name == "digits"
    teacher = io.load(digits.MODEL if small else ROOT / f"{name}.onnx")
    table = Table(name, digits.accuracy if small else glyphs.accuracy, out)
    learning = find("auto").model_copy(update={"learn": Learn(steps=150)})
    data, unseen = digit_images() if small else (images(40 * BATCH), glyphs.test_feeds())
    bounds: Any = ({"max_size": 0.08}, {"max_macs": 0.35})
    for bound in bounds:
        more: Any = {**bound, "data": data, "effort": "low"}
        plain = lwqc.compress(teacher, **more)
        with patch("lwqc.decide.search.whole.ratios", lambda *args: {}):
            blind = lwqc.compress(teacher, recipe=learning, **more)
        knowing = lwqc.compress(teacher, recipe=learning, **more)
        rows = {"search": plain, "and a fit": blind, "search that knows of the fit": knowing}
        for what, done in rows.items():
            losses = lwqc.verify(teacher, done.model, data=unseen).values()
            drop = max(loss.drop for loss in losses)
            told = () if done.search is None else done.search.notes
            table.row(f"{bound}: {what}", done.model, drop=round(drop, 5), notes=told)


def jobs(asked: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """What was asked for."""
    steps = asked.steps or 500
    ends: Row = {"steps": asked.steps} if asked.steps else {"time_limit": asked.seconds}
    if asked.what == "branches":
        yield lambda: branches(windows(asked.windows), ends, asked.lr, asked.json)
    elif asked.what == "bits":
        yield lambda: bits(steps, asked.json)
    for name in asked.models if asked.what == "blocks" else ():
        yield lambda name=name: blocks(name, steps, asked.json)
    for name in asked.models if asked.what == "rounding" else ():
        yield lambda name=name: rounding(name, steps, asked.json)
    for name in asked.models if asked.what == "codebooks" else ():
        language = name == "stdlib_lm"
        data = windows(asked.windows) if language else images(asked.images)
        yield lambda name=name, data=data: codebooks(name, data, ends, asked.lr, asked.json)
    for name in asked.models if asked.what == "scales" else ():
        yield lambda name=name: scales(name, steps, asked.json)
    for name in asked.models if asked.what == "ranges" else ():
        yield lambda name=name: ranges(name, steps, asked.json)
    for name in asked.models if asked.what == "search" else ():
        yield lambda name=name: search(name, asked.json)
    for name in asked.models or GLYPHS if asked.what == "macs" else ():
        yield lambda name=name: macs(name, asked.images, ends, asked.lr, asked.json)


def main() -> int:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = (
        "macs", "branches", "bits", "blocks", "rounding", "codebooks", "scales", "ranges", "search"
    )  # fmt: skip
    parser.add_argument("what", choices=kinds)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--seconds", type=float, default=800)
    parser.add_argument("--steps", type=int, help="in place of seconds; 500 where no time counts")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--json", type=Path)
    for job in jobs(parser.parse_args()):
        job()
    return 0


if __name__ == "__main__":
    sys.exit(main())
