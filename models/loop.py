"""The training loop of every torch definition: schedule, time budget, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Seconds. More than that and the process was paused, which is not training time.
_LONGEST_STEP = 4.0


@dataclass(frozen=True)
class Budget:
    """How long to train: `steps`, or less where `minutes` of wall time (0: no limit) end first.

    The learning rate follows whichever is further on, so a run cut short still ends well; a run
    that the clock did not cut is reproducible.
    """

    steps: int
    minutes: float = 0.0
    warmup: float = 0.02

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is over, 0..1, after so many steps and seconds."""
        clock = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(1.0, max(step / self.steps, clock))

    def rate(self, progress: float) -> float:
        """Learning rate as a share of its peak: linear warm-up, then half a cosine to 2 %."""
        if progress < self.warmup:
            return max(0.02, progress / self.warmup)
        turn = (progress - self.warmup) / (1 - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * turn))


def fit(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loss_of: Callable[[int], torch.Tensor],
    budget: Budget,
    checkpoint: Path | None = None,
) -> int:
    """Minimise `loss_of(step)`; returns the number of steps taken.

    checkpoint: where the weights are saved about once in three minutes and at the end.
    """
    import torch

    model.train()
    last = time.monotonic()
    seconds = saved = 0.0
    groups = [(group, group["lr"]) for o in optimizers for group in o.param_groups]
    average, step = 0.0, 0
    while (progress := budget.progress(step, seconds)) < 1:
        for group, peak in groups:
            group["lr"] = peak * budget.rate(progress)
        loss = loss_of(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        average += (loss.item() - average) * max(0.02, 1 / step)
        now = time.monotonic()
        seconds += min(now - last, _LONGEST_STEP)
        last = now
        if step % 25 == 0:
            print(f"{step} {progress:.1%} loss {average:.4f} {seconds:.0f} s", flush=True)
        if checkpoint and seconds - saved > 180:
            torch.save(model.state_dict(), checkpoint)
            saved = seconds
    if checkpoint:
        torch.save(model.state_dict(), checkpoint)
    return step
