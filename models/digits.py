"""Real handwritten 8x8 digits (scikit-learn) and a small residual CNN with BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.training import Feeds, Run, batches, command, export, top1

DEMO = Path(__file__).parent.parent / "lwqc" / "cli" / "demo"
MODEL = DEMO / "digits.onnx"
DATA = DEMO / "digits.npz"
CLASSES = 10
_TEST, _CALIBRATION, _SEED = 540, 128, 7


def make_data() -> dict[str, Any]:
    """Split the data set: uint8 images [n, 8, 8] in 0..16 and labels; no image is in two parts."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    order = np.random.default_rng(_SEED).permutation(len(images))
    test, train = order[:_TEST], order[_TEST:]
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "calibration_images": images[train[:_CALIBRATION]],
        "test_images": images[test],
        "test_labels": labels[test],
    }


def _feeds(images: Any) -> list[Feeds]:
    return batches({"image": (images / np.float32(16)).astype(np.float32)[:, None]}, 64)


def calibration() -> Iterator[Feeds]:
    """Training images for calibration: `image` [n, 1, 8, 8] in 0..1."""
    with np.load(DATA) as data:
        yield from _feeds(data["calibration_images"])


def accuracy(run: Run) -> float:
    """Top-1 on the held-back images."""
    with np.load(DATA) as data:
        return top1(run, _feeds(data["test_images"]), data["test_labels"])


def network() -> Any:
    """Conv-BN-ReLU stem, two residual blocks, pooling, classifier; about 170,000 parameters."""
    import torch
    from torch import nn

    def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o))

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = conv(width, width), conv(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.second(torch.relu(self.first(x))))

    return nn.Sequential(
        conv(1, 32), nn.ReLU(), Block(32), conv(32, 64, 2), nn.ReLU(), Block(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(path: Path, minutes: float) -> None:
    """Train with shifts as augmentation, save data and model."""
    import torch
    from torch.nn import functional

    torch.manual_seed(_SEED)
    rng = np.random.default_rng(_SEED)
    data = make_data()
    shipped = {k: v for k, v in data.items() if not k.startswith("train")}
    np.savez_compressed(DATA, **shipped)
    # The calibration images are part of the training images; both stay out of the test.
    x, y = data["train_images"] / np.float32(16), torch.tensor(data["train_labels"]).long()
    model, epochs = network(), 40
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * -(-len(x) // 64))
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), 64):
            index = order[start : start + 64]
            shifted = np.roll(x[index], rng.integers(-1, 2, 2), (1, 2))
            noisy = shifted + rng.normal(0, 0.1, shifted.shape).astype(np.float32)
            loss = functional.cross_entropy(
                model(torch.tensor(noisy[:, None])), y[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    export(
        model,
        (torch.rand(2, 1, 8, 8),),
        path,
        inputs=["image"],
        outputs=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


if __name__ == "__main__":
    command("digits", lambda run: {"accuracy": accuracy(run)}, train, MODEL)
