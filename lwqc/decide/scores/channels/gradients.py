"""Slopes of a loss along the weights of a model, by backward passes over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.decide.scores.channels.gates import Gates
from lwqc.decide.scores.channels.own_loss import OwnLoss, largest, own_scales
from lwqc.decide.scores.channels.ranking import Importance
from lwqc.errors import InputError
from lwqc.learn.needed import require_torch
from lwqc.runtime.data import Feeds
from lwqc.runtime.rebatched import free_batch, rebatched

if TYPE_CHECKING:
    import torch

    from lwqc.learn.distill import Scale
    from lwqc.learn.relevance import Rule

    Slopes = Sequence[torch.Tensor | None]

_BATCH = 32  # samples from which the statistics of a batch are taken
Arrays = dict[str, NDArray[np.floating]]
Loss = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


def is_differentiable(loss: Callable[..., Any]) -> bool:
    """Whether a loss takes tensors of torch and gives one, as its attribute says."""
    return bool(getattr(loss, "differentiable", False))


class Gradients:
    """Slopes along the weights of two axes and more, each computed when it is first asked for."""

    def __init__(
        self,
        model: ir.Model,
        data: Iterable[Feeds],
        loss: Loss | None,
        *,
        label: str,
        gates: Mapping[str, Gates] | None = None,
        untrained: bool = False,
        rule: Rule | None = None,
    ) -> None:
        """data: iterated over several times. loss: of outputs and feeds; None for `OwnLoss`.

        label: of the model, for messages. gates: of groups, by name. untrained: normalisations
        whose statistics are of no data go by the batch. rule: see `relevance`.
        Raises InputError without torch, for operators that gradients are not known of, and for a
        model without such weights.
        """
        require_torch()
        from lwqc.learn.batch_statistics import saw_no_data
        from lwqc.learn.guarded import guarded
        from lwqc.learn.to_torch import module_of

        self._model, self._data, self._label, self._gates = model, data, label, gates or {}
        self._given, self._rule = loss, rule
        self._loss = None if loss is None else guarded(loss)
        self._free = free_batch(model) is not None
        self._by_batch = untrained and saw_no_data(model)
        self._module = module_of(model, widen=True, batch_statistics=self._by_batch, rule=rule)
        for parameter in self._module.parameters():
            parameter.requires_grad_(parameter.ndim > 1)
        chosen = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        if not chosen:
            raise InputError(f"{label}: it has no weights that a loss could have slopes along")
        self._weights = list(chosen.values())
        places = (self._module.held[name].place for name in chosen)
        # Those of bodies and functions count, but no group has them.
        self._names = [place[0] if len(place) == 1 else None for place in places]
        self._curved: dict[float, Arrays] = {}
        self._relevance: dict[Rule, dict[str, Importance]] = {}

    @cached_property
    def weights(self) -> Arrays:
        """The weights themselves, by stored tensor."""
        return self._named([p.detach() for p in self._weights])

    @cached_property
    def mean(self) -> Arrays:
        """Gradient of the mean loss over the batches, by stored tensor; a pass over each batch."""
        return self._named(self._mean)

    @cached_property
    def sensitivity(self) -> float:
        """Sum of |weight times mean gradient| over all weights."""
        pairs = zip(self._weights, self._mean, strict=True)
        return sum(float((p.detach() * g).abs().double().sum()) for p, g in pairs if g is not None)

    def curved(self, temperature: float) -> Arrays:
        """Hessian of the mean loss times its gradient, by stored tensor.

        Two passes over each batch. temperature: outputs are divided by it before they reach the
        caller's loss; `OwnLoss` counts errors in units of the outputs, so that it changes nothing.
        """
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if temperature not in self._curved:
            first = self._over(lambda feeds, loss: self._slopes(feeds, loss, temperature))

            def product(feeds: Feeds, loss: Loss) -> Slopes:
                found = self._slopes(feeds, loss, temperature, again=True)
                pairs = zip(first, found, strict=True)
                parts = [(f * g).sum() for f, g in pairs if f is not None and g is not None]
                along = torch.stack(parts).sum()
                if not along.requires_grad:  # the gradient is the same everywhere
                    return [None for _ in found]
                return torch.autograd.grad(along, self._weights, allow_unused=True)

            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                self._curved[temperature] = self._named(self._over(product))
        return self._curved[temperature]

    @cached_property
    def by_sample(self) -> dict[str, Importance]:
        """Slopes of the loss of each sample along the gates of each group [samples, size].

        A sample is a place of axis 0 of all inputs where its size is free, else a whole run.
        """
        rows: dict[str, list[Importance]] = {name: [] for name in self._gates}
        loss, steep = self._fresh_loss(), False
        with self._told():
            for feeds in rebatched(self._data, 1) if self._free else self._data:
                slopes = self._slopes(feeds, loss)
                steep, found = steep or _any(slopes), self._named(slopes)
                for name, gates in self._gates.items():
                    rows[name].append(gates.slopes(found))
        self._check(steep)
        return {name: np.stack(found) for name, found in rows.items()}

    def relevance(self, rule: Rule) -> dict[str, Importance]:
        """Relevance of the channels of each group in each sample [samples, size], where it is read.

        Of what `loss` gives, or without one of the largest channel at each place of the outputs.
        """
        if rule not in self._relevance:
            by_rule = Gradients(
                self._model,
                self._data,
                self._given,
                label=self._label,
                gates=self._gates,
                rule=rule,
            )
            self._relevance[rule] = by_rule.by_sample
        return self._relevance[rule]

    @cached_property
    def _mean(self) -> Slopes:
        return self._over(self._slopes)

    def _over(self, slopes: Callable[[Feeds, Loss], Slopes]) -> Slopes:
        """Mean over the batches. Raises InputError where there is no slope at all."""
        total: list[torch.Tensor | None] = [None for _ in self._weights]
        loss, count = self._fresh_loss(), 0
        with self._told(), self._training():
            for feeds in self._batches():
                for place, found in enumerate(slopes(feeds, loss)):
                    if found is not None:
                        known = total[place]
                        total[place] = found if known is None else known + found
                count += 1
        self._check(_any(total))
        return [None if t is None else t / count for t in total]

    def _check(self, steep: bool) -> None:
        if not steep:
            raise InputError(f"{self._label}: the loss has no slope along any weight")

    def _slopes(
        self, feeds: Feeds, loss: Loss, temperature: float = 1.0, again: bool = False
    ) -> Slopes:
        """Of the loss of one run. again: so that slopes of these can be taken."""
        import torch

        outputs = self._module.values(feeds)
        if self._loss is not None and temperature != 1:
            outputs = {
                name: value / temperature if _has_slopes(value) else value
                for name, value in outputs.items()
            }
        value = loss(outputs, feeds)
        if not value.requires_grad:
            raise InputError(f"{self._label}: no output of floats depends on a weight")
        return torch.autograd.grad(value, self._weights, create_graph=again, allow_unused=True)

    def _batches(self) -> Iterable[Feeds]:
        return rebatched(self._data, _BATCH) if self._by_batch and self._free else self._data

    def _fresh_loss(self) -> Loss:
        if self._loss is not None:
            return self._loss
        return OwnLoss(self._scales) if self._rule is None else partial(largest, self._scales)

    @cached_property
    def _scales(self) -> dict[str, Scale]:
        import torch

        with self._told(), self._training(), torch.no_grad():
            return own_scales(self._module.values(feeds) for feeds in self._batches())

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Statistics of batches where there are no others; those of the file stay as they are."""
        import torch

        before = [b.clone() for b in self._module.buffers()] if self._by_batch else []
        self._module.train(self._by_batch)
        try:
            yield
        finally:
            self._module.eval()
            for buffer, value in zip(self._module.buffers(), before, strict=False):
                with torch.no_grad():
                    buffer.copy_(value)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Random numbers of the model are the same in every pass; errors of torch are told."""
        import torch

        from lwqc.learn.guarded import torch_errors

        with torch_errors(self._label), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield

    def _named(self, found: Slopes) -> Arrays:
        named = zip(self._names, found, strict=True)
        return {n: t.cpu().numpy() for n, t in named if n is not None and t is not None}


def _any(slopes: Slopes) -> bool:
    return any(t is not None and bool(t.any()) for t in slopes)


def _has_slopes(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))
