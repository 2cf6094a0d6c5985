"""Training and export of `stdlib_lm`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.stdlib_text import text

_BATCH, _LENGTH, _PEAK = 16, 256, 2.5e-3


def fit(model: Any, minutes: float, seed: int, checkpoint: Path) -> Any:
    """Train for a wall time; the learning rate follows the time spent, so any budget ends cold.

    The number of steps depends on the machine; the order of the data does not.
    """
    import torch
    from torch.nn import functional

    corpus = text(held_back=False)
    rng = np.random.default_rng(seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=_PEAK,
        betas=(0.9, 0.97),
    )
    start, step, spent = time.monotonic(), 0, 0.0
    while spent < 1:
        spent = (time.monotonic() - start) / (60 * minutes)
        rate = _PEAK * min(1, (step + 1) / 60) * (0.05 + 0.475 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = rng.integers(0, len(corpus) - _LENGTH - 1, _BATCH)
        window = torch.tensor(np.stack([corpus[i : i + _LENGTH + 1] for i in at]).astype(np.int64))
        logits = model(window[:, :-1])[0]
        loss = functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            bits = loss.item() / math.log(2)
            print(f"step {step} bits {bits:.3f} {100 * spent:.0f} %", flush=True)
            torch.save(model.state_dict(), checkpoint)
    torch.save(model.state_dict(), checkpoint)
    return model


def export_both(model: Any, path: Path) -> None:
    """Write `<path>` and `<path>_past` with one shared file of weights beside them."""
    raise NotImplementedError
