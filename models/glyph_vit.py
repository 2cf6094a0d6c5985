"""A vision transformer (Dosovitskiy et al. 2021) for glyphs, packed and biased QKV.

Convolutions make the patches (Xiao et al. 2021, "Early Convolutions Help Transformers See
Better"): with so little training, cutting patches straight from pixels stayed far behind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.glyph_images import CHARACTERS
from models.glyph_training import main

WIDTH, HEADS, LAYERS, HIDDEN = 96, 4, 6, 256


def _convolution(i: int, o: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        """Projections with bias."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, tokens, width]."""
        batch, tokens, width = x.shape
        parts = (batch, tokens, 3, self.heads, width // self.heads)
        qkv = self.qkv(x).reshape(parts).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and a two-layer perceptron, normalised first."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, hidden: int = HIDDEN) -> None:
        """GELU between the two linear layers."""
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, tokens, width]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A convolutional stem to 8x8 tokens, a class token, six layers."""

    def __init__(self) -> None:
        """Positions are learned."""
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(1, 32, 2), *_convolution(32, 64, 2), nn.Conv2d(64, WIDTH, 3, 1, 1)
        )
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 65, WIDTH) * 0.02)
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, image: Tensor) -> Tensor:
        """image: [batch, 1, 32, 32] -> [batch, classes]."""
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])  # type: ignore[no-any-return]


def network() -> nn.Module:
    """The model."""
    return VisionTransformer()


if __name__ == "__main__":
    main("glyph_vit", network, steps=1250, rate=3e-3)
