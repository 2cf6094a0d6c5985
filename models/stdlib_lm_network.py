"""The Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder; the defaults are the shipped model's, 5.1 M parameters."""

    vocabulary: int = 1024
    layers: int = 12
    width: int = 192
    heads: int = 8
    kv_heads: int = 2
    hidden: int = 544

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) over the last axis."""

    def __init__(self, width: int) -> None:
        """Start as plain normalisation."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021). x: [batch, head, seq, width]; cos, sin: [seq, width]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with an optional past."""

    def __init__(self, shape: Shape) -> None:
        """Projections without bias."""
        super().__init__()
        kv = shape.kv_heads * shape.head_width
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, kv, bias=False)
        self.v = nn.Linear(shape.width, kv, bias=False)
        self.o = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: [batch, seq, width]; past k, v: [batch, kv_heads, past, head_width].

        Returns the output and k, v of past and present.
        """
        s = self.shape
        batch, length = x.shape[0], x.shape[1]
        q = self.q(x).view(batch, length, s.heads, s.head_width).transpose(1, 2)
        k = self.k(x).view(batch, length, s.kv_heads, s.head_width).transpose(1, 2)
        v = self.v(x).view(batch, length, s.kv_heads, s.head_width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = functional.scaled_dot_product_attention(q, self._spread(k), self._spread(v), mask)
        return self.o(y.transpose(1, 2).reshape(batch, length, s.width)), k, v

    def _spread(self, x: Tensor) -> Tensor:
        """Repeat key/value heads for the query heads that share them."""
        s = self.shape
        group = s.heads // s.kv_heads
        wide = x[:, :, None].expand(-1, -1, group, -1, -1)
        return wide.reshape(x.shape[0], s.heads, -1, s.head_width)


class Layer(nn.Module):
    """Attention and SwiGLU (Shazeer 2020), each on a residual branch."""

    def __init__(self, shape: Shape) -> None:
        """Projections without bias."""
        super().__init__()
        self.attention_norm, self.attention = Norm(shape.width), Attention(shape)
        self.mlp_norm = Norm(shape.width)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: [batch, seq, width]; returns it updated, with k and v."""
        y, k, v = self.attention(self.attention_norm(x), cos, sin, mask, past)
        x = x + y
        n = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(n)) * self.up(n)), k, v


class Decoder(nn.Module):
    """Tokens to logits; the embedding is also the output projection."""

    def __init__(self, shape: Shape) -> None:
        """Initialise with small normal weights, residual outputs smaller still."""
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.05 / (2 * shape.layers) ** 0.5 if residual else 0.05)

    def forward(self, input_ids: Tensor, past: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        """input_ids: [batch, seq] int64; past: k0, v0, k1, v1, ... or None.

        Returns logits [batch, seq, vocabulary] and, with a past, the present k0, v0, ...
        """
        length = input_ids.shape[1]
        before = past[0].shape[2] if past else 0
        keys = torch.arange(before + length)
        positions = keys[before:]
        cos, sin = self._angles(positions)
        mask = keys[None, :] <= positions[:, None]
        x = self.embedding(input_ids)
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x, k, v = layer(x, cos, sin, mask, (past[2 * i], past[2 * i + 1]) if past else None)
            present += [k, v]
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return (logits, *present) if past else (logits,)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [seq, head_width], of the rotation at each position."""
        half = self.shape.head_width // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = positions[:, None].float() * frequency
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()


class WithoutCache(nn.Module):
    """`input_ids` -> `logits`."""

    def __init__(self, decoder: Decoder) -> None:
        """Share the decoder's weights."""
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids: [batch, seq] -> [batch, seq, vocabulary]."""
        return self.decoder(input_ids)[0]  # type: ignore[no-any-return]


class WithCache(nn.Module):
    """`input_ids`, `past_k0`, `past_v0`, ... -> `logits`, `present_k0`, `present_v0`, ..."""

    def __init__(self, decoder: Decoder) -> None:
        """Share the decoder's weights."""
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """input_ids: [batch, seq]; each past: [batch, kv_heads, past, head_width]."""
        return self.decoder(input_ids, past)  # type: ignore[no-any-return]
