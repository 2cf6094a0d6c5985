"""A loss where the caller gives none: how far outputs are from targets drawn around them.

The distance of a model from itself has no slope anywhere. That from its outputs plus noise of the
size by which each channel varies has: the mean of its squared slopes along a weight is what a
change of the weight does to the outputs, in the units of `ChannelErrors` (the Fisher information,
were the outputs the means of normal distributions), whether the model was trained or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwqc.compile.lesson import scale_of, varies
from lwqc.errors import InputError
from lwqc.runtime.stats.channel_error import ChannelMeter

if TYPE_CHECKING:
    import torch

    from lwqc.learn.distill import Scale


def own_scales(outputs: Iterable[Mapping[str, Any]]) -> dict[str, Scale]:
    """Channels and their variances of each output of floats that varies. outputs: of torch, by run.

    Raises InputError where there is no such output.
    """
    meters: dict[str, ChannelMeter] = {}
    for found in outputs:
        for name, value in found.items():
            if _is_float(value):
                array = value.detach().cpu().double().numpy()
                meters.setdefault(name, ChannelMeter()).add(array, array)
    scales = {}
    for name, meter in meters.items():
        scale = scale_of(meter)
        if varies(scale):
            scales[name] = scale
    if not scales:
        raise InputError("the model has no output of floats that varies: give a --loss")
    return scales


class OwnLoss:
    """Called in the same order, it draws the same targets."""

    def __init__(self, scales: Mapping[str, Scale], seed: int = 0) -> None:
        self._scales, self._rng = scales, np.random.default_rng(seed)

    def __call__(self, outputs: Mapping[str, Any], feeds: Mapping[str, Any]) -> torch.Tensor:
        """Mean over the outputs of the mean squared error by channel over its variance."""
        import torch

        from lwqc.learn.distill import relative_error

        parts = []
        for name, scale in self._scales.items():
            found = outputs[name].to(torch.promote_types(outputs[name].dtype, torch.float32))
            noise = self._rng.standard_normal(found.shape) * _spread(scale, tuple(found.shape))
            parts.append(relative_error(found, found.detach().cpu().numpy() + noise, scale))
        return torch.stack(parts).mean()


def largest(
    scales: Mapping[str, Scale], outputs: Mapping[str, Any], feeds: Mapping[str, Any]
) -> torch.Tensor:
    """Sum over the outputs of their largest channel at each place, as of the class that is told."""
    import torch

    found = ((outputs[name], scale.axis) for name, scale in scales.items())
    parts = (value if axis is None else value.amax(axis) for value, axis in found)
    return torch.stack([part.sum() for part in parts]).sum()


def _spread(scale: Scale, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard deviation of each channel, to multiply outputs of a shape with."""
    variance = np.asarray(scale.variance, np.float64)
    if scale.axis is None or variance.size != shape[scale.axis]:
        return np.full([1] * len(shape), np.sqrt(variance.mean()))
    along = [-1 if axis == scale.axis else 1 for axis in range(len(shape))]
    return np.asarray(np.sqrt(variance.reshape(along)))


def _is_float(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
