"""What the gradients of a module keep, and how it keeps less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lwqc.learn.module import OnnxModule
from lwqc.learn.parts import parts
from lwqc.learn.segments import Segments


def segmented(module: OnnxModule) -> Segments:
    """The program of a module, cut where few tensors carry everything on."""
    return Segments(module.program, [part.end for part in parts(module, module.places)])


@torch.no_grad()
def kept_bytes(module: OnnxModule, inputs: Mapping[str, Any]) -> int:
    """What all steps make of some inputs, most of which gradients need."""
    scope, total = {**module.stored(), **module.given(inputs)}, 0
    for index, step in enumerate(module.program.steps):
        module.program.part(index, index + 1).run(scope, frozenset(step.outputs))
        total += sum(getattr(scope.get(place), "nbytes", 0) for place in step.outputs)
        for place in step.dead:
            scope.pop(place, None)
    return total
