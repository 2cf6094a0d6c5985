"""Sensitivity of sites beside all others, by a product with the curvature of the outputs' distance.

With all weights changed by e_i the distance of the outputs from what they were is eᵀ G e for
small changes, G half of its Hessian. What site i has to do with it, alone and together with every
other site, is e_iᵀ G (Σ e_j): one Hessian-vector product for all sites (arXiv 2306.04879).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.decide.scores.channels.own_loss import own_scales
from lwqc.decide.scores.sensitivity import Exposed
from lwqc.model.weights import ReadArray
from lwqc.runtime.measure import weighted
from lwqc.runtime.stats.collector import Feeds

if TYPE_CHECKING:
    import torch

    from lwqc.learn.distill import Scale


def curved_sensitivity(
    model: ir.Model,
    names: Sequence[str],
    replacement: Callable[[str], NDArray[np.float32]],
    data: Sequence[Feeds],
    read: ReadArray,
    progress: Callable[[int, int], None] = lambda done, total: None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Error at the outputs that each site has a part in when all are replaced, to second order.

    names: of sites. replacement: site name -> quantized weight [N, K] as float32. weights: of
    outputs. Errors are squares over the variance of their channel, their mean over channels and
    outputs; they add up to that of all changes together, and where others make up for a site its
    part may be below 0.
    Raises InputError without torch and for operators whose gradients are not known.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from lwqc.learn.guarded import torch_errors
    from lwqc.learn.needed import require_torch
    from lwqc.learn.to_torch import module_of

    require_torch()
    exposed = Exposed.of(model, names, read)
    module = module_of(exposed.model, trainable="none")
    places = [exposed.changed(name, replacement(name)) for name in names]
    now = [torch.from_numpy(np.array(exposed.originals[place])) for place, _ in places]
    change = [torch.from_numpy(new) - old for (_, new), old in zip(places, now, strict=True)]
    given = {place: w.requires_grad_() for (place, _), w in zip(places, now, strict=True)}
    found = np.zeros(len(names))
    with torch_errors("sensitivity"), sdpa_kernel(SDPBackend.MATH):  # others are not twice smooth
        with torch.no_grad():
            scales = own_scales(module.values({**feeds, **given}) for feeds in data)
        for done, feeds in enumerate(data, 1):
            outputs = module.values({**feeds, **given})
            loss = _distance(outputs, scales, weights or {})
            slopes = torch.autograd.grad(loss, now, create_graph=True, allow_unused=True)
            pairs = zip(slopes, change, strict=True)
            along = [(s * c).sum() for s, c in pairs if s is not None and s.requires_grad]
            if along:
                product = torch.autograd.grad(torch.stack(along).sum(), now, allow_unused=True)
                found += [_half(p, c) for p, c in zip(product, change, strict=True)]
            progress(done, len(data))
    return dict(zip(names, (found / len(data)).tolist(), strict=True))


def _distance(
    outputs: Mapping[str, Any], scales: Mapping[str, Scale], weights: Mapping[str, float]
) -> torch.Tensor:
    """Of outputs from themselves: 0 with slopes of 0, and the curvature that is asked for."""
    import torch

    from lwqc.learn.distill import relative_error

    parts = []
    for name, scale in scales.items():
        own = outputs[name]
        error = relative_error(own, own.detach().cpu().numpy(), scale)
        parts.append(error * weighted(1.0, name, weights))
    return torch.stack(parts).mean()


def _half(product: torch.Tensor | None, change: torch.Tensor) -> float:
    return 0.0 if product is None else float((product * change).double().sum()) / 2
