"""Fitting a small model to the outputs of the one that it was made of.

A part of the data is held back: the fit never sees it, and its best point is what is best there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast, get_args

import onnx_ir as ir

from lwqc.compile.checkpoint import Checkpoint, key_of
from lwqc.compile.fitted import Fitting, fitted, silent
from lwqc.compile.lesson import Lesson
from lwqc.compile.recovered import Recovered, RecoverReport
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.model import io
from lwqc.model.coded_caches import caches_of
from lwqc.model.data_files import model_files
from lwqc.model.extensions import expected
from lwqc.model.metadata import bare
from lwqc.plans.bounds import Share
from lwqc.plans.options import Progress, Recovering
from lwqc.plans.plan import Parts
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset, open_data
from lwqc.runtime.rebatched import LEAST_FEEDS, free_batch
from lwqc.runtime.recorded import feeds_digest
from lwqc.runtime.served import as_sequence
from lwqc.runtime.session import Feeds
from lwqc.runtime.sources.opened import holds_samples

_STEPS, _LR = 1000, 0.01
_BATCH = 32  # samples at once, where there are enough of them
_SEEDS = 2**32
_SAMPLES = {".npy", ".npz"}  # files of single samples, which may be put together as one likes
_OBJECT = "an object"  # a loss of which nothing can be told
_ALL_STEPS = 10**9  # as many as the time allows


def recover(
    small: ir.Model,
    teacher: ir.Model,
    options: Recovering,
    *,
    names: tuple[str, str] = ("model", "teacher"),
    progress: Progress | None = None,
) -> Recovered:
    """Fit a model to the outputs of another one on data, see `lwqc.compile.fitted`.

    names: of both models, for messages. Raises InputError without torch, for operators that it
    knows no gradients of, and for models that share no float output.
    """
    require_torch()
    for model, name in zip((small, teacher), names, strict=True):
        if caches_of(model.metadata_props).pairs:
            raise InputError(f"{name}: its caches hold codes: recover first, then --kv-cache")
    steps, lr, limit = _checked(options)
    if options.get("loss") is not None and options.get("logits"):
        raise InputError("--loss takes the place of the distance of outputs: leave out --logits")
    small = small if options.get("keep_metadata") else bare(small)
    begin = time.monotonic()
    dataset = _data(teacher, options)
    feeds = [dict(f) for f in counted(dataset, "the data of the fit")]
    lesson = Lesson(
        small,
        teacher,
        feeds,
        tuple(options.get("inner", ())),
        names,
        logits=tuple(options.get("logits", ())),
    )
    checkpoint = _checkpoint(small, teacher, feeds, options)
    fitting = Fitting(
        steps,
        lr,
        options.get("seed", 0),
        limit,
        parts=_parts(options.get("parts")),
        low_rank=_low_rank(options),
        less_memory=options.get("less_memory", False),
        loss=options.get("loss"),
        checkpoint=checkpoint,
        progress=progress or silent,
    )
    found = fitted(small, lesson, fitting)
    notes = [*small.meta.get("lwqc_notes", ()), *found.notes]
    if checkpoint is not None and checkpoint.lost:
        notes.append(checkpoint.lost)
    if not found.held_back:
        notes.append("nothing was held back: loss and drop are those of all inputs")
    if dataset.kind == "random":
        notes.append("the data is random: what is fitted to it says little about real use")
    report = RecoverReport(
        source=names[0],
        teacher=names[1],
        data=dataset.description,
        fitted=found.fitted,
        held_back=found.held_back,
        steps=found.steps,
        parts=found.parts,
        seconds=time.monotonic() - begin,
        trained=found.trained,
        loss_before=found.loss_before,
        loss_after=found.loss_after,
        drop_before=found.drop_before,
        drop_after=found.drop_after,
        unchanged=found.unchanged,
        notes=tuple(notes),
    )
    files = [*model_files(small), *model_files(teacher)]
    return Recovered(found.model, report, lesson.expected, files)


def _checked(options: Recovering) -> tuple[int, float, float | None]:
    """Steps, largest step and seconds. Raises InputError."""
    steps, limit = options.get("steps"), options.get("time_limit")
    lr = Share("lr").read(options.get("lr", _LR))
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: expected at least 1")
    if limit is not None and not limit > 0:
        raise InputError(f"--time-limit {limit:g}: expected seconds above 0")
    if not 0 <= options.get("seed", 0) < _SEEDS:
        raise InputError(f"--seed {options.get('seed')}: expected 0 to {_SEEDS - 1}")
    if not 0 < lr < 1:
        raise InputError(f"--lr {lr:g}: expected a share between 0 and 1")
    return steps or (_STEPS if limit is None else _ALL_STEPS), lr, limit


def _checkpoint(
    small: ir.Model, teacher: ir.Model, feeds: Sequence[Feeds], options: Recovering
) -> Checkpoint | None:
    """Raises InputError for the state of another fit, and for one to resume that has no place."""
    path, resume = options.get("checkpoint"), options.get("resume", False)
    if path is None:
        if resume:
            raise InputError("resume: the state of a fit is in a file: give checkpoint")
        return None
    models = [io.model_digest(model) for model in (small, teacher)]
    data = [feeds_digest(one).hex() for one in feeds]
    names = ("steps", "time_limit", "lr", "seed", "parts", "inner", "logits", "low_rank")
    told = {**{name: options.get(name) for name in names}, "loss": _told(options.get("loss"))}
    if resume and told["loss"] == _OBJECT:
        raise InputError("resume: a loss that is no function of its own cannot be told from others")
    return Checkpoint(Path(path), key_of([*models, *data], told), resume=resume)


def _told(loss: object) -> object:
    """What a loss is, so far as it can be told: its code, and what that code holds on to."""
    code, cells = getattr(loss, "__code__", None), getattr(loss, "__closure__", None)
    if loss is None or code is None:
        return None if loss is None else _OBJECT
    held = [cell.cell_contents for cell in cells or ()]
    if not all(isinstance(value, (int, float, str, tuple, type(None))) for value in held):
        return _OBJECT
    constants = [repr(c) for c in code.co_consts if not hasattr(c, "co_code")]
    inner = [c.co_code for c in code.co_consts if hasattr(c, "co_code")]
    defaults = getattr(loss, "__defaults__", None)
    where = getattr(loss, "__module__", "")
    return where, code.co_code, inner, constants, code.co_names, repr(defaults), held


def _parts(asked: str | None) -> Parts | None:
    if asked is not None and asked not in get_args(Parts):
        raise InputError(f"--parts {asked}: {expected(asked, get_args(Parts))}")
    return cast("Parts | None", asked)


def _low_rank(options: Recovering) -> int | None:
    rank = options.get("low_rank")
    if rank is not None and rank < 1:
        raise InputError(f"--low-rank {rank}: expected at least 1")
    if rank is not None and options.get("parts") not in (None, "none"):
        raise InputError("--low-rank fits the whole: leave out --parts")
    return rank


def _data(teacher: ir.Model, options: Recovering) -> Dataset:
    """In batches, so many that some can be held back."""
    spec = options.get("data")
    opening = partial(
        open_data, spec, teacher, seed=options.get("seed", 0), preprocess=options.get("preprocess")
    )
    asked = as_sequence(options.get("shapes"))
    if asked:
        return opening(shapes=asked[0])
    if not isinstance(spec, (str, os.PathLike)):
        return opening()
    if Path(spec).suffix not in _SAMPLES and not holds_samples(Path(spec)):
        return opening()
    name = free_batch(teacher)
    if name is None:
        return opening()
    size = _BATCH
    while True:
        dataset = opening(shapes={name: size})
        count = sum(1 for _ in dataset)
        if count >= LEAST_FEEDS or size == 1:
            return dataset
        fewer = max(size * count // LEAST_FEEDS, 1)
        size = fewer if fewer < size else size // 2
