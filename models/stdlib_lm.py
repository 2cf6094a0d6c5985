"""A Llama-style byte language model trained on the Python standard library's sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.training import FOLDER, Feeds, Run, command, open_run

MODEL = FOLDER / "stdlib_lm.onnx"
MODEL_PAST = FOLDER / "stdlib_lm_past.onnx"
TEXT = FOLDER / "stdlib_lm_text.npz"  # held-back and calibration windows, frozen
LAYERS, WIDTH, HEADS, KV_HEADS, HIDDEN = 12, 192, 8, 2, 576
HEAD = WIDTH // HEADS
_WINDOW, _EVALUATED, _CALIBRATED, _SEED = 512, 64, 24, 11
_PROMPT, _CONTINUED, _PROMPTS = 96, 32, 12


def _windows(name: str) -> NDArray[np.int64]:
    with np.load(TEXT) as data:
        return np.asarray(data[name], np.int64)


def calibration() -> Iterator[Feeds]:
    """Windows of training text: `input_ids` [4, 256]."""
    windows = _windows("calibration")[:, :256]
    for start in range(0, len(windows), 4):
        yield {"input_ids": windows[start : start + 4]}


def bits_per_byte(run: Run) -> float:
    """Mean negative log2 probability of the next byte on held-back files; lower is better."""
    total = count = 0.0
    windows = _windows("test")
    for start in range(0, len(windows), 4):
        ids = windows[start : start + 4]
        logits = run({"input_ids": ids})["logits"][:, :-1].astype(np.float64)
        peak = logits.max(-1, keepdims=True)
        log_total = np.log(np.exp(logits - peak).sum(-1)) + peak[..., 0]
        chosen = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        total += float((log_total - chosen).sum()) / np.log(2)
        count += chosen.size
    return total / count


bits_per_byte.higher_is_better = False  # type: ignore[attr-defined]


def greedy_agreement(run: Run) -> float:
    """Share of positions at which the model continues held-back text as the float model does.

    Both are fed the float model's own continuation, so one early difference counts once.
    """
    prompts = _windows("test")[:_PROMPTS, :_PROMPT]
    reference = open_run(MODEL)
    ids = prompts
    for _ in range(_CONTINUED):
        following = reference({"input_ids": ids})["logits"][:, -1].argmax(-1)
        ids = np.concatenate([ids, following[:, None]], axis=1)
    predicted = run({"input_ids": ids})["logits"][:, _PROMPT - 1 : -1].argmax(-1)
    return float(np.mean(predicted == ids[:, _PROMPT:]))


def network() -> Any:
    """The decoder: forward(ids [b, s], *past) -> (logits [b, s, 256], *present).

    past and present: key and value per layer, [b, kv heads, length, head size].
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
            self.k = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
            self.v = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
            self.o = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any, mask: Any, past: Any) -> Any:
            b, s, _ = x.shape
            q = self.q(x).view(b, s, HEADS, HEAD).transpose(1, 2)
            k = self.k(x).view(b, s, KV_HEADS, HEAD).transpose(1, 2)
            v = self.v(x).view(b, s, KV_HEADS, HEAD).transpose(1, 2)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if past is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            present = (k, v)
            k = k.repeat_interleave(HEADS // KV_HEADS, 1)
            v = v.repeat_interleave(HEADS // KV_HEADS, 1)
            y = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None
            )
            return self.o(y.transpose(1, 2).reshape(b, s, HEADS * HEAD)), present

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention, self.norm2 = Norm(), Attention(), Norm()
            self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any, mask: Any, past: Any) -> Any:
            y, present = self.attention(self.norm1(x), cos, sin, mask, past)
            x = x + y
            y = self.norm2(x)
            return x + self.down(functional.silu(self.gate(y)) * self.up(y)), present

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(256, WIDTH)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = Norm()
            frequency = 10000.0 ** (-torch.arange(0, HEAD, 2).float() / HEAD)
            self.register_buffer("frequency", frequency, persistent=False)
            for name, p in self.named_parameters():
                if p.ndim > 1:
                    last = name.endswith(("o.weight", "down.weight"))
                    nn.init.normal_(p, std=0.03 / (2 * LAYERS) ** 0.5 if last else 0.03)

        def forward(self, ids: Any, *past: Any) -> Any:
            length = past[0].shape[2] if past else 0
            position = torch.arange(ids.shape[1], device=ids.device) + length
            angle = position[:, None].float() * self.frequency[None]
            angle = torch.cat([angle, angle], -1)
            cos, sin = angle.cos(), angle.sin()
            mask = None
            if past:
                key = torch.arange(ids.shape[1] + length, device=ids.device)
                mask = key[None, :] <= position[:, None]
            x, presents = self.embedding(ids), []
            for i, layer in enumerate(self.layers):
                x, present = layer(x, cos, sin, mask, past[2 * i : 2 * i + 2] or None)
                presents += present
            logits = functional.linear(self.norm(x), self.embedding.weight)
            return (logits, *presents)

    return Decoder()


def make_text() -> dict[str, NDArray[np.uint8]]:
    """Windows [n, 512] of bytes: `test` from held-back files, `calibration` from the others."""
    from models.stdlib_text import text

    rng = np.random.default_rng(_SEED)
    found = {}
    for name, held, count in (("test", True, _EVALUATED), ("calibration", False, _CALIBRATED)):
        corpus = text(held_back=held)
        starts = np.sort(rng.choice(len(corpus) // _WINDOW - 1, count, replace=False)) * _WINDOW
        found[name] = np.stack([corpus[s : s + _WINDOW] for s in starts])
    return found


def train(path: Path, minutes: float) -> None:
    """Train for the given wall time (default 70 minutes), export both graphs on one data file."""
    import torch

    from models.stdlib_lm_training import export_both, fit

    torch.manual_seed(_SEED)
    np.savez_compressed(TEXT, **make_text())  # type: ignore[arg-type]
    model = fit(network(), minutes or 70.0, _SEED, path.with_suffix(".pt"))
    export_both(model, path)


if __name__ == "__main__":
    command("stdlib_lm", lambda run: {"bits_per_byte": bits_per_byte(run),
                                      "greedy_agreement": greedy_agreement(run)}, train, MODEL)
