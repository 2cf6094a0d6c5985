"""A forward and backward pass: torch definitions against `lwqc.to_torch` of the files made of them.

    python -m benchmarks.torch_steps [NAME ...] [--rounds N]

The glyph models, as `models/` defines them: batches of 32. With `pip install transformers`
(measured with 5.24.0) also its code of ResNet-50 (4 images of 224 x 224), ViT-B/16 (2) and
BERT-base (2 x 128 tokens), random weights, exported by `torch.onnx.export`. Processor time of one
thread in evaluation mode, medians of rounds that alternate. The files of the glyph models have
their batch normalisations folded into convolutions, which the definitions have not; those that are
exported here keep theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lwqc.learn.to_torch import module_of
from lwqc.model import io
from models import glyph_mobilenet, glyph_resnet, glyph_shufflenet, glyph_vit

ROOT = Path(__file__).parents[1] / "models"
GLYPHS = {
    "glyph_resnet": glyph_resnet.network,
    "glyph_vit": glyph_vit.network,
    "glyph_mobilenet": glyph_mobilenet.network,
    "glyph_shufflenet": glyph_shufflenet.network,
}
OTHERS = ("resnet50", "vit_base", "bert_base")
ROUNDS, RUNS = 5, 5


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{', '.join([*GLYPHS, *OTHERS])}; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    if unknown := set(asked.names) - {*GLYPHS, *OTHERS}:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    others = OTHERS if importlib.util.find_spec("transformers") else ()
    torch.set_num_threads(1)
    for name in asked.names or [*GLYPHS, *others]:
        runs, before, after = glyph(name) if name in GLYPHS else exported(name)
        rounds = [(seconds(before, runs), seconds(after, runs)) for _ in range(asked.rounds)]
        one, two = (statistics.median(r[i] for r in rounds) for i in (0, 1))
        ratios = sorted(b / a for a, b in rounds)
        print(
            f"{name}: torch {one * 1e3:.1f} ms, to_torch {two * 1e3:.1f} ms, ratio "
            f"{two / one:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def glyph(name: str) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Runs that are timed together, a step of the definition, and one of the file."""
    images = torch.randn(32, 1, 32, 32)
    defined, loaded = GLYPHS[name]().eval(), module_of(io.load(ROOT / f"{name}.onnx"))
    return (
        RUNS,
        step(defined, lambda: defined(images)),
        step(loaded, lambda: loaded(images)["logits"]),
    )


def exported(name: str) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """The same of a model of transformers."""
    defined, inputs = definition(name)

    class Plain(torch.nn.Module):
        """Its first output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = defined

        def forward(self, *given: torch.Tensor) -> Any:
            return self.model(**dict(zip(inputs, given, strict=True)), return_dict=False)[0]

    plain = Plain().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            plain, tuple(inputs.values()), path, input_names=list(inputs), output_names=["y"],
            dynamo=True, optimize=False, verbose=False,
        )  # fmt: skip
        loaded = module_of(io.load(path))
    own = dict(inputs)
    with torch.no_grad():
        difference = (plain(*inputs.values()) - loaded(**own)["y"]).abs().max()
    print(f"{name}: largest difference of the outputs {float(difference):.1e}")
    return (
        1,
        step(plain, lambda: plain(*inputs.values())),
        step(loaded, lambda: loaded(**own)["y"]),
    )


def definition(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Random weights in the shape of an architecture, and inputs."""
    import transformers

    torch.manual_seed(0)
    if name == "bert_base":
        config = transformers.BertConfig(attn_implementation="eager")
        return transformers.BertModel(config, add_pooling_layer=False).eval(), {
            "input_ids": torch.randint(0, config.vocab_size, (2, 128)),
        }
    if name == "vit_base":
        config = transformers.ViTConfig(attn_implementation="eager")
        found: Any = transformers.ViTForImageClassification(config)
        return found.eval(), {"pixel_values": torch.randn(2, 3, 224, 224)}
    found = transformers.ResNetForImageClassification(transformers.ResNetConfig())
    return found.eval(), {"pixel_values": torch.randn(4, 3, 224, 224)}


def step(module: torch.nn.Module, run: Callable[[], Any]) -> Callable[[], None]:
    """One pass forward and back."""

    def passes() -> None:
        module.zero_grad(set_to_none=True)
        run().square().mean().backward()

    return passes


def seconds(run: Callable[[], None], runs: int) -> float:
    """Median processor time."""
    run()
    times = []
    for _ in range(runs):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
