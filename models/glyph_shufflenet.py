"""A ShuffleNetV2 (Ma et al. 2018) for glyphs: splits, concatenations, channel shuffles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.glyph_images import CHARACTERS
from models.glyph_training import main


def convolution(i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation; ReLU unless depthwise."""
    layers: list[nn.Module] = [
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if groups == 1 else []))


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class Unit(nn.Module):
    """Half of the channels pass, half are transformed, then both are shuffled."""

    def __init__(self, channels: int) -> None:
        """Keep shape."""
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            convolution(half, half), convolution(half, half, 3, 1, half), convolution(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, channels, h, w]."""
        kept, changed = x.chunk(2, 1)
        return shuffle(torch.cat((kept, self.body(changed)), 1))


class Downsample(nn.Module):
    """Both branches transform all channels at stride two."""

    def __init__(self, i: int, o: int) -> None:
        """i, o: channels in and out."""
        super().__init__()
        half = o // 2
        self.left = nn.Sequential(convolution(i, i, 3, 2, i), convolution(i, half))
        self.right = nn.Sequential(
            convolution(i, half), convolution(half, half, 3, 2, half), convolution(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, i, h, w] -> [batch, o, h / 2, w / 2]."""
        return shuffle(torch.cat((self.left(x), self.right(x)), 1))


def network() -> nn.Module:
    """Stem at 16x16, stages at 8x8 and 4x4."""
    return nn.Sequential(
        convolution(1, 24, 3),
        convolution(24, 48, 3, 2),
        *[Unit(48) for _ in range(2)],
        Downsample(48, 112),
        *[Unit(112) for _ in range(3)],
        Downsample(112, 224),
        *[Unit(224) for _ in range(2)],
        convolution(224, 256),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, len(CHARACTERS)),
    )


if __name__ == "__main__":
    main("glyph_shufflenet", network, steps=1300, rate=4e-3)
