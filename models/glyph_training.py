"""Training, export and command line of the glyph models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.glyph_images import TRAIN_FONTS, make
from models.glyphs import TRAIN_SEED, as_input, metrics
from models.loop import Budget, fit
from models.training import FOLDER, command, export

BATCH, SEED = 96, 5


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for matrices inside blocks, AdamW for everything else."""
    inside = {id(p) for n, p in model.named_parameters() if "layers" in n and p.dim() == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    others = [p for p in model.parameters() if id(p) not in inside]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=0.02, weight_decay=0.02))
    return found


def train_network(
    network: Callable[[], nn.Module],
    steps: int,
    rate: float,
    minutes: float = 0.0,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Train on images drawn as it goes: no image is seen twice."""
    torch.manual_seed(SEED)
    model = network()

    def loss_of(step: int) -> torch.Tensor:
        images = make(BATCH, TRAIN_SEED * 1_000_003 + step, fonts=TRAIN_FONTS)
        logits = model(torch.from_numpy(as_input(images.pixels)))
        labels = torch.from_numpy(images.labels.astype(np.int64))
        return functional.cross_entropy(logits, labels, label_smoothing=0.05)

    fit(model, optimizers(model, rate), loss_of, Budget(steps, minutes), checkpoint)
    return model


def export_network(model: nn.Module, path: Path, *, untrained: bool = False) -> None:
    """Write `image` [batch, 1, 32, 32] -> `logits` [batch, 180]; untrained: see `export`."""
    export(
        model,
        (torch.rand(2, 1, 32, 32),),
        path,
        inputs=["image"],
        outputs=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        untrained=untrained,
    )


def main(name: str, network: Callable[[], nn.Module], *, steps: int, rate: float) -> None:
    """The command line of one glyph model."""

    def train(path: Path, minutes: float) -> None:
        model = train_network(network, steps, rate, minutes, path.with_suffix(".pt"))
        export_network(model, path)

    command(name, metrics, train, FOLDER / f"{name}.onnx")
