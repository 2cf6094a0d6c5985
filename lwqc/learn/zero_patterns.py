"""Zeros, and numbers next to none, that stay as they are while those beside them are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Share of zeros from which they are a pattern that stays; few low codes are other than zero.
_SPARSE, _SPARSE_CODES = 0.25, 0.5
_OF, _ZEROS = 4, 2  # 2:4 sparsity
# Of the median size: what weight decay has let die, in scales of a normalisation often whole
# channels down to 1e-33. Steps, which are as large for all numbers, would bring them back to life.
_DEAD = 1e-5


@dataclass(frozen=True)
class ZeroPattern:
    """free: where numbers are fitted. zero: what is elsewhere, one number or one for each place."""

    free: torch.Tensor
    zero: torch.Tensor

    @staticmethod
    def of(parameter: torch.Tensor, *, coded: bool) -> ZeroPattern | None:
        """The pattern of a parameter, if its zeros are one; nothing but zeros is none.

        coded: it holds codes, of which another one than 0 may stand for 0: the commonest, if so
        many of each four along an axis are that. Scales of blocks may each have their own. Of
        vectors of numbers that are no codes, those next to none stay too.
        """
        now = parameter.detach()
        if not bool(now.any()):
            return None
        zeros = now == 0
        many = _SPARSE_CODES if coded else _SPARSE
        sparse = now.ndim > 1 and float(zeros.float().mean()) >= many
        if sparse:
            return ZeroPattern(~zeros, torch.zeros((), dtype=now.dtype, device=now.device))
        if not coded and now.numel() == max(now.shape, default=1):
            least = _DEAD * float(now.abs().median())
            free = (now.abs() >= least) | zeros
            return None if bool(free.all()) else ZeroPattern(free, torch.where(free, 0.0, now))
        if not coded or now.ndim < 2:
            return None
        commonest = [now.flatten().mode().values, now.mode(-1, keepdim=True).values]
        for zero in commonest:
            free = now != zero
            if any(_is_2_of_4(~free, axis) for axis in (-1, 0)):
                return ZeroPattern(free, zero)
        return None

    @torch.no_grad()
    def keep(self, parameter: torch.nn.Parameter) -> None:
        """Put the zeros back."""
        parameter.copy_(torch.where(self.free, parameter, self.zero))


def _is_2_of_4(zeros: torch.Tensor, axis: int) -> bool:
    along = zeros.movedim(axis, -1)
    whole = along.shape[-1] // _OF * _OF
    groups = along[..., :whole].reshape(-1, _OF)
    return len(groups) > 0 and bool((groups.sum(-1) >= _ZEROS).all())
