"""Trains the decoder on the standard library and saves its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from models.byte_pairs import BytePairs
from models.loop import Budget, fit
from models.shared_weights import share_weights
from models.stdlib_corpus import texts
from models.stdlib_lm_network import Decoder, Shape, WithCache, WithoutCache
from models.training import export

BATCH, LENGTH, SEED, STEPS = 8, 256, 11, 1600


def token_stream(vocabulary: BytePairs) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """All training files one after the other, a zero byte between them."""
    tokens: list[int] = []
    for text in texts(held_back=False):
        tokens += vocabulary.encode(text)
        tokens.append(0)
    return np.array(tokens, np.int64)


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the projections, Adam for embedding and norms."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and "embedding" not in n]
    others = [p for n, p in named if p.dim() != 2 or "embedding" in n]
    muon = torch.optim.Muon(matrices, lr=0.015, weight_decay=0.02, adjust_lr_fn="original")
    return [muon, torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]


def train_decoder(vocabulary: BytePairs, minutes: float, checkpoint: Path | None = None) -> Decoder:
    """Train from scratch; about 45 minutes on one core for all steps."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = Decoder(Shape())
    stream = token_stream(vocabulary)

    def loss_of(step: int) -> torch.Tensor:
        starts = rng.integers(0, len(stream) - LENGTH - 1, BATCH)
        window = torch.from_numpy(stream[starts[:, None] + np.arange(LENGTH + 1)])
        logits = model(window[:, :-1])[0]
        return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    fit(model, optimizers(model), loss_of, Budget(STEPS, minutes), checkpoint)
    return model


def export_decoder(model: Decoder, path: Path) -> None:
    """Write `path` without and `<stem>_past.onnx` with a cache; weights go to `<stem>.data`."""
    with_past = path.with_name(path.stem + "_past.onnx")
    batch, sequence, past = (torch.export.Dim(n) for n in ("batch", "sequence", "past"))
    ids, ids_shape = torch.randint(0, 256, (2, 5)), {0: batch, 1: sequence}
    names = [f"{kind}{i}" for i in range(model.shape.layers) for kind in "kv"]
    export(
        WithoutCache(model),
        (ids,),
        path,
        inputs=["input_ids"],
        outputs=["logits"],
        dynamic_shapes=(ids_shape,),
    )
    cache = [torch.zeros(2, model.shape.kv_heads, 3, model.shape.head_width) for _ in names]
    export(
        WithCache(model),
        (ids, cache),
        with_past,
        inputs=["input_ids", *(f"past_{name}" for name in names)],
        outputs=["logits", *(f"present_{name}" for name in names)],
        dynamic_shapes=(ids_shape, [{0: batch, 2: past} for _ in names]),
    )
    share_weights((path, with_past), path.with_suffix(".data"))
