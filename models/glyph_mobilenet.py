"""A MobileNetV3 (Howard et al. 2019) for glyphs: depthwise, squeeze-excite, hard-swish."""

from __future__ import annotations

from torch import Tensor, nn

from models.glyph_images import CHARACTERS
from models.glyph_training import main


def convolution(
    i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, active: bool = True
) -> nn.Sequential:
    """Convolution, batch normalisation and, if active, hard-swish."""
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
        nn.Hardswish() if active else nn.Identity(),
    )


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        """Squeeze to a quarter."""
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, channels, h, w]."""
        return x * self.gate(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Expand, filter each channel alone, gate, project; a residual where shapes allow."""

    def __init__(self, i: int, o: int, wide: int, kernel: int, stride: int) -> None:
        """i, o: channels in and out; wide: channels inside."""
        super().__init__()
        self.residual = i == o and stride == 1
        self.body = nn.Sequential(
            convolution(i, wide),
            convolution(wide, wide, kernel, stride, wide),
            SqueezeExcite(wide),
            convolution(wide, o, active=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, i, h, w]."""
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


def network() -> nn.Module:
    """Seven blocks, 16x16 down to 4x4."""
    return nn.Sequential(
        convolution(1, 16, 3, 2),
        Block(16, 24, 64, 3, 1),
        Block(24, 24, 72, 3, 1),
        Block(24, 40, 96, 5, 2),
        Block(40, 40, 144, 5, 1),
        Block(40, 40, 144, 5, 1),
        Block(40, 64, 192, 5, 2),
        Block(64, 64, 256, 5, 1),
        convolution(64, 256),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, len(CHARACTERS)),
    )


if __name__ == "__main__":
    main("glyph_mobilenet", network, steps=900, rate=4e-3)
