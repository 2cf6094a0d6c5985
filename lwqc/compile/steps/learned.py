"""The step that fits weights and codes to the original by gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from lwqc.compile.fitted import Fitted, Fitting, fitted, silent
from lwqc.compile.lesson import Lesson
from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.compile.version import Version
from lwqc.plans.plan import Plan
from lwqc.runtime.counted import counted
from lwqc.runtime.rebatched import in_pieces


def _run(made: Made) -> Made:
    learn, lowered, job = made.plan.learn, made.lowered, made.work.job
    assert learn is not None
    assert lowered is not None
    lesson = lesson_of(made.work, lowered.model, made.model)
    fitting = Fitting(
        learn.steps, learn.lr, learn.seed,
        parts=learn.parts, soft=learn.rounding == "soft", whole=learn.whole,
        progress=job.progress or silent,
    )  # fmt: skip
    found = fitted(lowered.model, lesson, fitting)
    plan = made.plan.noted(_told(found), *found.notes)
    return replace(made, plan=plan, lowered=replace(lowered, model=found.model))


def lesson_of(work: Version, small: ir.Model, floats: ir.Model | None = None) -> Lesson:
    """What a compressed model is fitted to. floats: with the weights that its codes stand for."""
    job, original = work.job, work.original
    feeds = [dict(f) for f in counted(job.data.fit, "the data of the fit")]
    pieces = in_pieces(feeds, original.model)
    names = ("the compressed model", original.name)
    return Lesson(small, original.model, pieces, (), names, job.load, floats)


def _told(found: Fitted) -> str:
    inputs = f"{found.fitted} sets of inputs, {found.held_back} held back"
    if found.unchanged:
        return f"learned nothing on {inputs}: {found.unchanged}"
    parts = f"{found.better} of {found.parts} parts got better; " if found.parts else ""
    loss = f"held-back loss {found.loss_before:.4g} -> {found.loss_after:.4g}"
    return f"learned on {inputs}: {parts}{loss}"


def _text(plan: Plan) -> Iterator[str]:
    learn = plan.learn
    assert learn is not None
    parts = "blocks by entropy" if learn.parts == "entropy" else learn.parts
    what = [] if learn.parts == "none" else [f"{parts} one by one"]
    what += ["the whole"] if learn.whole else []
    yield f"{' and then '.join(what)} fitted to the original, {learn.steps} steps each"


def _looks(plan: Plan) -> Iterator[Looks]:
    yield "data"


STEP = Step("learn", _run, _text, lambda plan: "learned", looks=_looks, late=True)
