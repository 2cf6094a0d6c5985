"""Passes in a row, as one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.passes.base import apply, name_of
from lwqc.passes.context import Context
from lwqc.passes.pipeline_text import Item, parsed
from lwqc.passes.planned import PLANNED, Planned
from lwqc.passes.registry import item_of, make, names, running, unknown

# What a text may name beside passes; each is a text itself.
PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "simplify": "fold-constants,global-pool,constant-reshape,flat-transpose,flat-product,"
        "kept-axes,decided-where,identity-gather,late-broadcast,fold-constants,join-equal,fuse-activations,fold-affine,stft-conv",
        "fuse": "raise-opset{version=23 for-fusions=true},one-hot-gather,grouped-experts,"
        "fuse-gelu,"
        "fuse-layer-norm,fuse-rms-norm,fuse-rotary,fuse-attention",
        "clean": "simplify,fuse,nan-guards,fold-constants",
        "merge": "merge-parallel{operators=MatMul,Gemm},fold-constants",
        "lower-cpu": "residual-sum,insert-qdq,side-branch,integer-matmul,integer-bias,integer-lstm,"
        "block-quantize,bnb4,fold-weights,keep-together,remove-unused",
        "lower-cuda": "side-branch,block-quantize,fold-weights,convert-floats,"
        "sizes-on-device,keep-together,remove-unused",
        "lower-openvino": "input-qdq,side-branch,row-dequantize,fold-weights,keep-together,"
        "remove-unused",
        "lower-tensorrt": "input-qdq,block-dequantize,convert-floats,remove-unused",
    }
)


class Instrument:
    """Looks at a model between the passes of a pipeline; this one at nothing."""

    def before(self, step: ir.passes.PassBase, model: ir.Model) -> bool:
        """Called in front of each pass, left out or not; the pipeline ends where it is False."""
        return True

    def after(self, step: ir.passes.PassBase, model: ir.Model, changes: int) -> None:
        """Called behind each pass that ran. changes: places that changed."""


_WATCH: ContextVar[tuple[Callable[[], Instrument], ...]] = ContextVar("watch", default=())


@contextmanager
def watching(make: Callable[[], Instrument]) -> Iterator[None]:
    """Whatever pipeline runs inside of the block is looked at, by an instrument made for it."""
    token = _WATCH.set((*_WATCH.get(), make))
    try:
        yield
    finally:
        _WATCH.reset(token)


@dataclass(frozen=True)
class Pipeline:
    """Passes that run one after the other on one model.

    A pass that already ran, with the same options, is left out where nothing changed since.
    """

    steps: tuple[ir.passes.PassBase, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline that a text describes, see `pipeline_text`.

        Names of pipelines stand for their passes. Raises InputError.
        """
        return cls(tuple(step for item in parsed(text) for step in _steps(item)))

    def __str__(self) -> str:
        """The text that `parse` reads as this; the passes behind it by name."""
        return ",".join(str(item_of(step)) for step in self.steps)

    def bound(self, given: Mapping[str, ir.passes.PassBase | None]) -> Pipeline:
        """The same with passes of their own for some names; None leaves the pass out."""
        steps = (given.get(name_of(step), step) for step in self.steps)
        return Pipeline(tuple(step for step in steps if step is not None))

    def run(
        self,
        model: ir.Model,
        ctx: Context | None = None,
        instruments: Sequence[Instrument] = (),
        *,
        settled: Sequence[ir.passes.PassBase] = (),
    ) -> tuple[str, ...]:
        """Run in place; returns the names of the passes that changed something, each once.

        ctx: collects what passes report. instruments: look at the model, beside those of
        `watching`. settled: passes that ran on this very model before.
        """
        instruments = [*instruments, *(make() for make in _WATCH.get())]
        ctx = ctx or Context(model)
        done = list(settled)
        changed: dict[str, None] = {}
        for step in self.steps:
            if not all(i.before(step, model) for i in instruments):
                break
            if step in done:
                continue
            with running(type(step)):
                changes = apply(step, ctx)
            done = [step] if changes else [*done, step]
            if changes:
                changed[name_of(step)] = None
            for instrument in instruments:
                instrument.after(step, model, changes)
        return tuple(changed)


def _steps(item: Item) -> tuple[ir.passes.PassBase, ...]:
    if item.name in PIPELINES:
        if item.options:
            raise InputError(f"{item.name} is a pipeline: it has no options of its own")
        return Pipeline.parse(PIPELINES[item.name]).steps
    if item.name in PLANNED:
        return (Planned(item.name),)
    if item.name not in names():
        raise unknown("pass", item.name, [*names(), *PIPELINES, *PLANNED])
    return (make(item),)
