"""Fitting a small model to the outputs of the one that it was made of.

A part of the data is held back: the fit never sees it, and its best point is what is best there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lwqc.compile.lesson import Lesson
from lwqc.compile.recovered import Recovered, RecoverReport
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.model.data_files import model_files
from lwqc.model.user_code import running
from lwqc.plans.options import Progress, Recovering
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset, open_data, required_inputs
from lwqc.runtime.served import as_sequence

if TYPE_CHECKING:
    from lwqc.learn.distill import Fit, Loss
    from lwqc.learn.module import OnnxModule

_STEPS, _LR = 1000, 0.01
_BATCH, _LEAST_BATCHES = 32, 20  # samples at once, where there are enough of them
_SAMPLES = {".npy", ".npz"}  # files of single samples, which may be put together as one likes
_HELD = 5  # one of so many is held back
_ALL_STEPS = 10**9  # as many as the time allows


def recover(
    small: ir.Model,
    teacher: ir.Model,
    options: Recovering,
    *,
    names: tuple[str, str] = ("model", "teacher"),
    progress: Progress | None = None,
) -> Recovered:
    """Fit a model to the outputs of another one on data.

    Weights that are stored as codes stay codes: whole numbers of the same scales. Zeros of sparse
    weights stay zero. names: of both models, for messages.
    Raises InputError without torch, for operators that it knows no gradients of, and for models
    that share no float output.
    """
    require_torch()
    from lwqc.learn.distill import Distillation, Settings
    from lwqc.learn.to_torch import module_of, write_back

    steps, lr, limit = _checked(options)
    begin = time.monotonic()
    module = module_of(small, codes=True, widen=True)
    dataset = _data(teacher, options)
    feeds = [dict(f) for f in counted(dataset, "the data of the fit")]
    lesson = Lesson(small, teacher, feeds, tuple(options.get("inner", ())), names)
    batches = lesson.batches()
    held = batches[_HELD - 1 :: _HELD]
    fit = [b for i, b in enumerate(batches) if i % _HELD != _HELD - 1]
    settings = Settings(steps, lr, options.get("seed", 0), limit, _told(progress))
    loss = options.get("loss")
    distillation = Distillation(
        module, lesson.scales(fit), settings, None if loss is None else _guarded(loss)
    )
    with _told_where(names[0]):
        found = distillation.run(fit, held)
    made = small if found.unchanged else write_back(module, small)
    before, after = (lesson.drop(model, held or fit) for model in (small, made))
    if not held:
        lesson.notes.append("nothing was held back: loss and drop are those of all inputs")
    if not after <= before and made is not small:
        if loss is None:
            made, after = small, before
            found = replace(found, unchanged="onnxruntime computes no better outputs with it")
        else:
            lesson.notes.append(f"by --loss the outputs got further from those of {names[1]}")
    report = RecoverReport(
        source=names[0],
        teacher=names[1],
        data=dataset.description,
        fitted=len(fit),
        held_back=len(held),
        steps=found.steps,
        seconds=time.monotonic() - begin,
        trained=sum(p.numel() for p in module.parameters()) if found.steps else 0,
        loss_before=found.start,
        loss_after=found.best,
        drop_before=before,
        drop_after=after,
        unchanged=found.unchanged,
        notes=(*lesson.notes, *_notes(module, found, dataset)),
    )
    return Recovered(made, report, lesson.expected, [*model_files(small), *model_files(teacher)])


def _checked(options: Recovering) -> tuple[int, float, float | None]:
    """Steps, largest step and seconds. Raises InputError."""
    steps, limit = options.get("steps"), options.get("time_limit")
    lr = options.get("lr", _LR)
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: expected at least 1")
    if limit is not None and not limit > 0:
        raise InputError(f"--time-limit {limit:g}: expected seconds above 0")
    if not 0 < lr < 1:
        raise InputError(f"--lr {lr:g}: expected a share between 0 and 1")
    return steps or (_STEPS if limit is None else _ALL_STEPS), lr, limit


def _data(teacher: ir.Model, options: Recovering) -> Dataset:
    """In batches, so many that some can be held back."""
    spec, seed = options.get("data"), options.get("seed", 0)
    asked = as_sequence(options.get("shapes"))
    if asked:
        return open_data(spec, teacher, seed=seed, shapes=asked[0])
    if not isinstance(spec, (str, os.PathLike)) or Path(spec).suffix not in _SAMPLES:
        return open_data(spec, teacher, seed=seed)
    name, *others = {_symbol(v) for v in required_inputs(teacher).values()} or [None]
    if name is None or others:
        return open_data(spec, teacher, seed=seed)
    size = _BATCH
    while True:
        dataset = open_data(spec, teacher, seed=seed, shapes={name: size})
        count = sum(1 for _ in dataset)
        if count >= _LEAST_BATCHES or size == 1:
            return dataset
        fewer = max(size * count // _LEAST_BATCHES, 1)
        size = fewer if fewer < size else size // 2


def _symbol(value: ir.Value) -> str | None:
    first = value.shape[0] if value.shape is not None and len(value.shape) else None
    return first.value if isinstance(first, ir.SymbolicDim) else None


def _guarded(loss: Callable[..., Any]) -> Loss:
    """The user's loss, whose failures are told as theirs."""
    import torch

    def run(outputs: Mapping[str, Any], feeds: Mapping[str, Any]) -> torch.Tensor:
        with running("--loss: the function failed"):
            value = loss(outputs, feeds)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise InputError("--loss: expected a torch tensor with one number")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise InputError("--loss: expected a tensor with a gradient, not a detached one")
        return value.reshape(())

    return run


@contextmanager
def _told_where(name: str) -> Iterator[None]:
    """What torch cannot compute, such as sizes that it does not take, is told with the node."""
    from lwqc.learn.program import NodeError

    try:
        yield
    except NodeError as error:
        raise InputError(f"{name}: {error}") from error
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0][:300]
        raise InputError(f"{name}: torch says: {line}") from error


def _told(progress: Progress | None) -> Callable[[int, int], None]:
    if progress is None:
        return lambda done, total: None
    return lambda done, total: progress("fitting to the teacher", done, total)


def _notes(module: OnnxModule, found: Fit, dataset: Dataset) -> list[str]:
    notes = [f"the fit ended after {found.steps} steps: {found.ended}"] if found.ended else []
    if dataset.kind == "random":
        notes.append("the data is random: what is fitted to it says little about real use")
    reasons: dict[str, list[str]] = {}
    for name, reason in module.untrained.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in sorted(reasons.items()):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notes.append(f"not trained: {names[0]}{more}: {reason}")
    if module.drawn:
        notes.append(f"random numbers are drawn anew in every run: {', '.join(module.drawn[:3])}")
    return notes
