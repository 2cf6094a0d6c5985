"""Prune a network that was never trained, then train it: against training all of it.

Run it from the root of the repository: python -m examples.before_training.before_training
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import lwqc
from examples.before_training.tasks import Task, find
from models.training import batches, open_run

SEED, BATCH, SCORED = 5, 96, 384  # samples that channels are scored on


def prune(task: Task, source: Path, recipe: str, ratio: float, path: Path) -> tuple[int, int]:
    """Remove channels by what the training loss says of them before the first step.

    Returns the multiply-accumulates of one sample before and after.
    """
    images, wanted = task.draw(-1 % 2**32, SCORED)
    # What a loss gets beside the outputs are inputs: labels are looked up by them.
    known = {image.tobytes(): int(label) for image, label in zip(images, wanted, strict=True)}

    def loss(outputs: dict[str, torch.Tensor], feeds: dict[str, np.ndarray]) -> torch.Tensor:
        labels = torch.tensor([known[image.tobytes()] for image in feeds["image"]])
        return cross_entropy(outputs["logits"], labels)

    data = batches({"image": images}, BATCH)
    options = {"loss": loss} if recipe in ("fisher", "grasp", "snip") else {}
    report = lwqc.prune(source, recipe=recipe, ratio=ratio, data=data, **options).save(path)
    before, after = report.pruning.macs  # of the first batch
    return before // BATCH, after // BATCH


def train(task: Task, source: Path, steps: int, rate: float, path: Path) -> None:
    """A training loop as for any torch module; what it made goes back into the file."""
    model = lwqc.load(source)
    module = lwqc.to_torch(model, batch_statistics=True).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        images, labels = task.draw(step, BATCH)
        logits = module(image=images)["logits"]
        loss = cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"{path.stem}: {step + 1} of {steps} steps, loss {loss.item():.3f}", flush=True)
    lwqc.save(lwqc.write_back(module, model), path)


def row(name: str, accuracy: float, path: Path, macs: int) -> str:
    """What is printed of a file."""
    size = path.stat().st_size
    return f"{name:24} accuracy {accuracy:.4f}  {size:>9,} bytes  {macs:>11,} MACs"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits", help="digits, glyph_resnet, ... of models/")
    parser.add_argument("--untrained", type=Path, help="start from this file instead")
    parser.add_argument("--recipe", default="snip")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs that goes")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first weights")
    parser.add_argument("--folder", type=Path, default=Path("before_training"))
    options = parser.parse_args()
    task, folder = find(options.model), options.folder
    folder.mkdir(parents=True, exist_ok=True)
    start, pruned = options.untrained or folder / "untrained.onnx", folder / "pruned.onnx"
    if options.untrained is None:
        torch.manual_seed(options.seed)
        task.export(start)
    before, after = prune(task, start, options.recipe, options.ratio, pruned)
    trained = {"dense": folder / "dense-trained.onnx", "pruned": folder / "pruned-trained.onnx"}
    train(task, start, options.steps, options.rate, trained["dense"])
    train(task, pruned, options.steps, options.rate, trained["pruned"])
    small = folder / "quantized.onnx"
    data = list(task.calibration())
    lwqc.quantize(trained["pruned"], bits=8, activations="static", data=data).save(small)
    print(f"{options.model} after {options.steps} steps of {BATCH} samples:")
    for name, path, macs in (
        ("dense", trained["dense"], before),
        ("pruned before training", trained["pruned"], after),
        ("and quantized after it", small, after),
    ):
        print(row(name, task.accuracy(open_run(path)), path, macs))


if __name__ == "__main__":
    main()
