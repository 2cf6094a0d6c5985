"""A model that is fitted to its teacher: part by part, then as a whole."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lwqc.compile.checkpoint import Checkpoint
from lwqc.compile.lesson import Lesson
from lwqc.learn.needed import require_torch
from lwqc.plans.options import Progress
from lwqc.plans.plan import Parts
from lwqc.runtime.memory import free_memory
from lwqc.runtime.rebatched import held_back
from lwqc.runtime.session import default_threads

if TYPE_CHECKING:
    from lwqc.learn.distill import Batch, Distillation, Fit, Scale, Settings
    from lwqc.learn.low_rank_updates import LowRankUpdates
    from lwqc.learn.module import OnnxModule
    from lwqc.learn.parts import Part

_OF_PARTS = 0.5  # share of the time in which parts are fitted one by one
_OF_MEMORY = 0.5  # share of what is free that gradients may keep
_TIMED = 6  # steps that tell how long one takes


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody is told."""


@dataclass(frozen=True)
class Fitting:
    """How a model is fitted.

    steps: of each part, and of the whole. lr: share of a weight's size that the largest step
    changes it by. parts: fitted one by one to the teacher's before the whole is; None: blocks,
    where the model holds codes and there is no `loss`. soft: how codes of parts are learned, see
    `Learn.rounding`. whole: whether that is fitted then. scales: those of codes too. low_rank:
    matrices move by updates of that rank, codes not at all. less_memory: what lies between parts is
    computed twice, see `lwqc.learn.segments`; it is in any case where memory is short. loss: of
    outputs and feeds for the whole, in place of the distance from the teacher's outputs.
    checkpoint: where the state is kept.
    """

    steps: int
    lr: float
    seed: int = 0
    time_limit_s: float | None = None
    parts: Parts | None = None
    soft: bool = True
    whole: bool = True
    scales: bool = True
    low_rank: int | None = None
    less_memory: bool = False
    loss: Callable[..., Any] | None = None
    checkpoint: Checkpoint | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class Fitted:
    """What came of a fit.

    fitted, held_back: numbers of feeds. steps: of the whole. parts, better: how many parts were
    fitted one by one, and how many of them got better. loss_before, loss_after: on the feeds that
    were held back (all, where none was), as torch computes it. drop_before, drop_after: as
    onnxruntime does. trained: how many numbers were. unchanged: why the model is as it was, or "".
    """

    model: ir.Model
    fitted: int
    held_back: int
    steps: int
    parts: int
    better: int
    trained: int
    loss_before: float
    loss_after: float
    drop_before: float
    drop_after: float
    unchanged: str
    notes: tuple[str, ...]


def fitted(small: ir.Model, lesson: Lesson, fitting: Fitting) -> Fitted:
    """Fit a model to the outputs of another one on data.

    Weights that are stored as codes stay codes: whole numbers of the same scales. Zeros of sparse
    weights stay zero. Raises InputError without torch, for operators that it knows no gradients
    of, and for models that share no float output.
    """
    require_torch()
    from lwqc.learn.descent import UnlikeStateError
    from lwqc.learn.guarded import torch_errors
    from lwqc.learn.to_torch import write_back

    _use_threads()
    run = _Run.of(small, lesson, fitting)
    try:
        with torch_errors(lesson.names[0]):
            run.save_memory()
            before = run.loss()
            if run.parts != "none":
                run.by_parts()
            whole = run.as_a_whole()
    except UnlikeStateError as error:
        assert fitting.checkpoint is not None
        raise fitting.checkpoint.unlike(str(error)) from error
    reasons = [fit.unchanged for fit in (*run.fits, whole)]
    unchanged = reasons[0] if all(reasons) else ""
    if not unchanged and not whole.best < before:
        unchanged = "all that was fitted makes the loss on held-back inputs no less"
    made = small if unchanged else write_back(run.module, small)
    old, new = (lesson.drop(model, run.judges) for model in (small, made))
    notes = [*lesson.notes, *run.notes(whole)]
    if not new <= old and made is not small:
        if fitting.loss is None and not lesson.logits:
            made, new, unchanged = small, old, "onnxruntime computes no better outputs with it"
        else:
            by = "--logits" if fitting.loss is None else "--loss"
            notes.append(f"by {by} the outputs got further from those of {lesson.names[1]}")
    return Fitted(
        made,
        fitted=len(run.fit),
        held_back=len(run.held),
        steps=whole.steps,
        parts=len(run.fits),
        better=sum(not fit.unchanged for fit in run.fits),
        trained=run.trained(whole),
        loss_before=before,
        loss_after=before if unchanged else whole.best,
        drop_before=old,
        drop_after=new,
        unchanged=unchanged,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Pace:
    """Seconds of a step of the whole, and of a check on so many held-back inputs."""

    step_s: float
    check_s: float
    held: int

    def steps_within(self, seconds: float) -> int:
        """As many as such a fit makes, its checks and one before and after it included."""
        from lwqc.learn.distill import checks

        def needed(steps: int) -> float:
            return steps * self.step_s + (checks(steps, self.held) + 2) * self.check_s

        steps = int(seconds / self.step_s)
        while steps > 0 and needed(steps) > seconds:
            steps -= max(1, steps // 100)
        return max(steps, 0)


def timed(small: ir.Model, lesson: Lesson, fitting: Fitting) -> Pace:
    """What a fit of the whole takes here. Raises as `fitted` does."""
    require_torch()
    from lwqc.learn.guarded import torch_errors

    _use_threads()
    run = _Run.of(small, lesson, fitting)
    with torch_errors(lesson.names[0]):
        run.save_memory()
        begin = time.monotonic()
        run.loss()
        checked = time.monotonic()
        run.whole(1.0).try_steps(run.fit, _TIMED)
        step = (time.monotonic() - checked) / _TIMED
    return Pace(step, checked - begin, len(run.judges))


def _use_threads() -> None:
    """torch computes on as many threads as sessions do, where the user says how many."""
    import torch

    count = default_threads()
    if count:
        torch.set_num_threads(count)


@dataclass
class _Run:
    """A module in the making. fit, held: inputs with the teacher's outputs. fits: of its parts.

    scales: what errors of outputs count by; without those that do not vary. updates: by which
    matrices move, None where all numbers do.
    """

    module: OnnxModule
    lesson: Lesson
    fitting: Fitting
    fit: list[Batch]
    held: list[Batch]
    scales: Mapping[str, Scale]
    fits: list[Fit] = field(default_factory=list)
    fitted_parts: list[Part] = field(default_factory=list)
    updates: LowRankUpdates | None = None
    begun: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(small: ir.Model, lesson: Lesson, fitting: Fitting) -> _Run:
        from lwqc.learn.to_torch import module_of

        codes = fitting.low_rank is None
        module = module_of(small, codes=codes, scales=codes and fitting.scales, widen=True)
        module.channels_last()
        batches = lesson.batches()
        judges = held_back(len(batches))
        held = [batches[i] for i in judges]
        fit = [batch for i, batch in enumerate(batches) if i not in judges]
        run = _Run(module, lesson, fitting, fit, held, lesson.scales(fit))
        if fitting.low_rank is not None:
            from lwqc.learn.low_rank_updates import LowRankUpdates

            run.updates = LowRankUpdates(module, fitting.low_rank, fitting.seed)
        return run

    def save_memory(self) -> None:
        """Keep less for the gradients, where that is asked for or there is little memory."""
        from lwqc.learn.less_memory import kept_bytes, segmented

        if self.fitting.less_memory:
            self.module.segments = segmented(self.module)
            return
        free = free_memory()
        if free is None:
            return
        needed = kept_bytes(self.module, self.judges[0].feeds)
        if needed > _OF_MEMORY * free:
            self.module.segments = segmented(self.module)
            self.lesson.notes.append(
                f"what lies between blocks is computed twice: all of it takes {needed / 1e9:.1f} "
                f"GB in each step, and {free / 1e9:.1f} GB are free"
            )

    @property
    def judges(self) -> list[Batch]:
        """What results are told on."""
        return self.held or self.fit

    @property
    def parts(self) -> Parts:
        """What is fitted one by one."""
        if self.updates is not None:
            return "none"
        usual: Parts = "blocks" if self.module.codes and self.fitting.loss is None else "none"
        return self.fitting.parts or usual

    def loss(self) -> float:
        """Of the outputs, as the module is now."""
        return float(self.whole(1.0).held_losses(self.judges).mean())

    def by_parts(self) -> None:
        """Fit each part on what the parts before it give."""
        from lwqc.learn.reconstruction import Reconstruction
        from lwqc.learn.to_torch import module_of

        feeds = [b.feeds for b in (*self.fit, *self.held)]
        own = self._settings(_OF_PARTS, "fitting each part")
        teacher = module_of(self.lesson.teacher, "none")
        floats = self.lesson.floats
        soft = None
        if self.fitting.soft:
            soft = teacher if floats is None else module_of(floats, "none")
        kind = self.parts
        assert kind != "none"
        how = Reconstruction(self.module, teacher, soft, kind)
        self.fitted_parts, self.fits = how.run(
            feeds, len(self.fit), self.lesson.scales, own, self.fitting.checkpoint
        )

    def as_a_whole(self) -> Fit:
        """Fit the outputs of the model."""
        from lwqc.learn.distill import Fit

        if not self.fitting.whole:
            loss = self.loss()
            return Fit(loss, loss, 0, "no part of it can be fitted alone")
        found = self.whole(1.0).run(self.fit, self.held, self.fitting.checkpoint)
        if self.updates is not None:
            self.updates.fold()
        return found

    def whole(self, share: float) -> Distillation:
        """The fit of the outputs. share: of the time from the beginning on."""
        from lwqc.learn.distill import Distillation
        from lwqc.learn.guarded import guarded

        loss = self.fitting.loss
        return Distillation(
            self.updates or self.module,
            self.scales,
            self._settings(share, "fitting the whole"),
            None if loss is None else guarded(loss),
        )

    def _settings(self, share: float, stage: str) -> Settings:
        """share: of the time from the beginning on."""
        from lwqc.learn.distill import Settings

        asked = self.fitting
        limit = asked.time_limit_s
        behind = time.monotonic() - self.begun
        left = None if limit is None else max(share * limit - behind, 0.0)
        return Settings(asked.steps, asked.lr, asked.seed, left, partial(asked.progress, stage))

    def trained(self, whole: Fit) -> int:
        """How many numbers were fitted."""
        if self.updates is not None:
            return sum(p.numel() for p in self.updates.parameters())
        of_parts = {name for part in self.fitted_parts for name in part.trained}
        names = dict(self.module.named_parameters())
        return sum(p.numel() for name, p in names.items() if whole.steps or name in of_parts)

    def _in_no_part(self) -> dict[str, str]:
        """Parameters that nothing was done to, where only parts were fitted."""
        if self.fitting.whole or self.parts == "none":
            return {}
        of_parts = {name for part in self.fitted_parts for name in part.trained}
        left = [n for n, _ in self.module.named_parameters() if n not in of_parts]
        return {self.module.tensors[n]: "no part reads it alone" for n in left}

    def notes(self, whole: Fit) -> list[str]:
        """What readers should know of the fit."""
        notes = [f"the fit ended after {whole.steps} steps: {whole.ended}"] if whole.ended else []
        still = sorted(self.judges[0].wanted.keys() - self.scales.keys())
        notes += [f"output {name} is not fitted: it does not vary" for name in still]
        for reason, count in Counter(fit.unchanged for fit in self.fits if fit.unchanged).items():
            notes.append(f"{count} of {len(self.fits)} parts stay as they were: {reason}")
        for reason, count in Counter(fit.ended for fit in self.fits if fit.ended).items():
            notes.append(f"the fit of {count} of {len(self.fits)} parts ended early: {reason}")
        reasons: dict[str, list[str]] = {}
        for name, reason in {**self.module.untrained, **self._in_no_part()}.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in sorted(reasons.items()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            notes.append(f"not trained: {names[0]}{more}: {reason}")
        if self.module.drawn:
            drawn = ", ".join(self.module.drawn[:3])
            notes.append(f"random numbers are drawn anew in every run: {drawn}")
        return notes
