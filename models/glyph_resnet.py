"""A residual network of basic blocks (He et al. 2016) for glyphs, 0.7 M parameters."""

from __future__ import annotations

from torch import Tensor, nn

from models.glyph_images import CHARACTERS
from models.glyph_training import main


def convolution(i: int, o: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o)
    )


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        """i, o: channels in and out."""
        super().__init__()
        self.first, self.second = convolution(i, o, stride=stride), convolution(o, o)
        self.shortcut = nn.Identity() if i == o else convolution(i, o, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, i, h, w]."""
        y = self.second(self.activation(self.first(x)))
        return self.activation(y + self.shortcut(x))  # type: ignore[no-any-return]


def network() -> nn.Module:
    """Three stages of two blocks at 16x16, 8x8 and 4x4."""
    return nn.Sequential(
        convolution(1, 16),
        nn.ReLU(),
        convolution(16, 32, stride=2),
        nn.ReLU(),
        Block(32, 32, 1),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
        Block(64, 128, 2),
        Block(128, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, len(CHARACTERS)),
    )


if __name__ == "__main__":
    main("glyph_resnet", network, steps=800, rate=4e-3)
