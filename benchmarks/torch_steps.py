"""A forward and backward pass of the glyph models: their torch definitions against `lwqc.to_torch`.

python benchmarks/torch_steps.py

Processor time of one thread, batches of 32, medians of rounds that alternate. The files have their
batch normalisations folded into convolutions, which the definitions have not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lwqc.learn.to_torch import module_of
from lwqc.model import io
from models import glyph_mobilenet, glyph_resnet, glyph_shufflenet, glyph_vit

SUBJECTS = {
    "glyph_resnet": glyph_resnet.network,
    "glyph_vit": glyph_vit.network,
    "glyph_mobilenet": glyph_mobilenet.network,
    "glyph_shufflenet": glyph_shufflenet.network,
}
ROUNDS, RUNS = 5, 5


def main() -> None:
    """Print a line for each model."""
    torch.set_num_threads(1)
    images = torch.randn(32, 1, 32, 32)
    for name, network in SUBJECTS.items():
        defined = network().eval()
        loaded = module_of(io.load(Path(__file__).parents[1] / "models" / f"{name}.onnx"))
        before = step(defined, lambda net=defined: net(images))
        after = step(loaded, lambda net=loaded: net(images)["logits"])
        rounds = [(seconds(before), seconds(after)) for _ in range(ROUNDS)]
        one, two = (statistics.median(r[i] for r in rounds) for i in (0, 1))
        print(
            f"{name}: torch {one * 1e3:.1f} ms, to_torch {two * 1e3:.1f} ms, ratio {two / one:.2f}"
        )


def step(module: torch.nn.Module, run: Callable[[], Any]) -> Callable[[], None]:
    """One pass forward and back."""

    def passes() -> None:
        module.zero_grad(set_to_none=True)
        run().square().mean().backward()

    return passes


def seconds(run: Callable[[], None]) -> float:
    """Median processor time."""
    run()
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
