"""A DeiT-shaped model for the glyphs, trained as DeiT is: for the benchmark of fewer tokens.

    python -m benchmarks.glyph_deit --out FILE.onnx [--minutes M] [--bfloat16]

Touvron et al. 2021, "Training data-efficient image transformers and distillation through
attention", at their Ti width: patches cut straight from pixels (4x4, 64 of them), a class and a
distillation token, 192 wide, three heads; six layers, not twelve. The head of the class token
learns labels, that of the distillation token the decisions of a convolutional teacher
(`glyph_resnet`), and the mean of both is the answer. It is too large to be shipped beside the
others; training it took 38 minutes on one core of an Intel Xeon with AMX, with --bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.glyph_images import CHARACTERS, TRAIN_FONTS, make
from models.glyph_training import BATCH, SEED, export_network, optimizers
from models.glyph_vit import Layer
from models.glyphs import TRAIN_SEED, accuracy, as_input
from models.loop import Budget, fit
from models.training import FOLDER, open_run

WIDTH, HEADS, LAYERS, PATCH, SIZE = 192, 3, 6, 4, 32
STEPS, RATE = 3000, 1e-3


class Deit(nn.Module):
    """`image` [batch, 1, 32, 32] -> `logits` [batch, 180]; both heads' apart in `heads`."""

    def __init__(self) -> None:
        """Positions are learned."""
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.randn(1, 2, WIDTH) * 0.02)
        count = (SIZE // PATCH) ** 2 + 2
        self.positions = nn.Parameter(torch.randn(1, count, WIDTH) * 0.02)
        self.layers = nn.Sequential(*[Layer(WIDTH, HEADS, 4 * WIDTH) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(CHARACTERS))
        self.head_distilled = nn.Linear(WIDTH, len(CHARACTERS))

    def heads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits from the class token and from the distillation token."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.tokens.expand(x.shape[0], -1, -1), x), 1) + self.positions
        x = self.norm(self.layers(x))
        return self.head(x[:, 0]), self.head_distilled(x[:, 1])

    def forward(self, image: Tensor) -> Tensor:
        """The mean of both heads."""
        own, distilled = self.heads(image)
        return (own + distilled) / 2


def train(minutes: float, *, bfloat16: bool = False) -> nn.Module:
    """Labels and the teacher's decisions count the same; no image is seen twice."""
    torch.manual_seed(SEED)
    model, teacher = Deit(), open_run(FOLDER / "glyph_resnet.onnx")

    def loss_of(step: int) -> Tensor:
        images = make(BATCH, TRAIN_SEED * 1_000_003 + step, fonts=TRAIN_FONTS)
        pixels = as_input(images.pixels)
        decided = torch.from_numpy(teacher({"image": pixels})["logits"].argmax(-1))
        labels = torch.from_numpy(images.labels.astype(np.int64))
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
        with mixed, sdpa_kernel(SDPBackend.MATH):  # flash attention's backward pass is slower here
            own, distilled = model.heads(torch.from_numpy(pixels))
        own, distilled = own.float(), distilled.float()
        hard = functional.cross_entropy(own, labels, label_smoothing=0.05)
        return (hard + functional.cross_entropy(distilled, decided)) / 2

    fit(model, optimizers(model, RATE), loss_of, Budget(STEPS, minutes))
    return model


def main() -> None:
    """Train, export, print the accuracy on the frozen held-out images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="end so early; 0: all steps")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision")
    chosen = parser.parse_args()
    export_network(train(chosen.minutes, bfloat16=chosen.bfloat16), chosen.out)
    print(f"accuracy {accuracy(open_run(chosen.out)):.4f}")


if __name__ == "__main__":
    main()
