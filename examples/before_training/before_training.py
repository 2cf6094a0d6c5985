"""Prune a network that was never trained, then train it: against training all of it.

Run it from the root of the repository: python -m examples.before_training.before_training
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import lwqc
from models.glyph_images import TRAIN_FONTS, Images, make
from models.glyph_training import export_network
from models.glyphs import accuracy, as_input, calibration
from models.training import open_run

SEED, BATCH, SCORED = 5, 96, 360  # images that channels are scored on: two of each character


def images(step: int, count: int) -> Images:
    """The training images of a step; no image is seen twice."""
    return make(count, 1_000_003 + step, fonts=TRAIN_FONTS)


def untrained(name: str, path: Path) -> None:
    """An architecture of `models/` as a file, with the weights that training would begin with."""
    torch.manual_seed(SEED)
    export_network(importlib.import_module(f"models.{name}").network(), path, untrained=True)


def prune(source: Path, recipe: str, ratio: float, path: Path) -> tuple[int, int]:
    """Remove channels by what the training loss says of them before the first step.

    Returns the multiply-accumulates before and after.
    """
    scored = images(-1, SCORED)
    given = as_input(scored.pixels)
    # What a loss gets beside the outputs are inputs: labels are looked up by them.
    labels = {
        image.tobytes(): int(label) for image, label in zip(given, scored.labels, strict=True)
    }

    def loss(outputs: dict[str, torch.Tensor], feeds: dict[str, np.ndarray]) -> torch.Tensor:
        wanted = torch.tensor([labels[image.tobytes()] for image in feeds["image"]])
        return cross_entropy(outputs["logits"], wanted)

    data = [{"image": part} for part in np.split(given, SCORED // 60)]
    takes = recipe in ("fisher", "grasp", "snip")
    options = {"loss": loss} if takes else {}
    report = lwqc.prune(source, recipe=recipe, ratio=ratio, data=data, **options).save(path)
    return report.pruning.macs


def train(source: Path, steps: int, rate: float, path: Path) -> None:
    """A training loop as for any torch module; what it made goes back into the file."""
    model = lwqc.load(source)
    module = lwqc.to_torch(model, batch_statistics=True).train()
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        batch = images(step, BATCH)
        logits = module(image=as_input(batch.pixels))["logits"]
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        loss = cross_entropy(logits, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"{path.stem}: {step + 1} of {steps} steps, loss {loss.item():.3f}", flush=True)
    lwqc.save(lwqc.write_back(module, model), path)


def quantize(source: Path, path: Path) -> None:
    """8-bit weights and activations of what was trained."""
    lwqc.quantize(source, bits=8, activations="static", data=list(calibration())).save(path)


def row(name: str, path: Path, macs: int) -> str:
    """What is printed of a file."""
    return (
        f"{name:28} accuracy {accuracy(open_run(path)):.4f}  {path.stat().st_size:>9,} bytes  "
        f"{macs:>11,} MACs"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="glyph_resnet", help="a module of models/")
    parser.add_argument("--untrained", type=Path, help="start from this file instead")
    parser.add_argument("--recipe", default="snip")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs that goes")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate at its highest")
    parser.add_argument("--folder", type=Path, default=Path("before_training"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: options.folder / f"{name}.onnx"
        for name in ("untrained", "pruned", "dense-trained", "pruned-trained", "quantized")
    }
    start = options.untrained or files["untrained"]
    if options.untrained is None:
        untrained(options.model, start)
    before, after = prune(start, options.recipe, options.ratio, files["pruned"])
    train(start, options.steps, options.rate, files["dense-trained"])
    train(files["pruned"], options.steps, options.rate, files["pruned-trained"])
    quantize(files["pruned-trained"], files["quantized"])
    print(f"after {options.steps} steps of {BATCH} images:")
    print(row("dense", files["dense-trained"], before))
    print(row("pruned before training", files["pruned-trained"], after))
    print(row("and quantized after it", files["quantized"], after))


if __name__ == "__main__":
    main()
