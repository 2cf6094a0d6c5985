"""Latency of models pruned to half of their MACs, beside the original, alternating.

python benchmarks/pruning_speed.py [NAME ...] [--seconds 6]

glyph_resnet by OBSPA on its calibration data; ResNet-50- and ViT-shaped models with random weights
by L2 magnitude (which channels go does not matter for speed). Widths free, and rounded to 8.
Medians of a default session each; the ratio is original over pruned.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lwqc.compile.execute import execute
from lwqc.decide.channels import decide
from lwqc.decide.compress import open_version
from lwqc.decide.prune_options import PruneOptions
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session
from lwqc.runtime.timer import time_runs
from tests.zoo.materialize import materialize, sample_inputs

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "glyph_resnet": ("models/glyph_resnet.onnx", 32),
    "resnet50": ("tests/zoo/resnet50.dynamo.onnx", 1),
    "vit_small": ("tests/zoo/vit_small_patch16_224.dynamo.onnx", 1),
    "mobilenet_v2": ("tests/zoo/mobilenet_v2.dynamo.onnx", 1),
    "bert": ("tests/zoo/bert.dynamo.onnx", 8),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=6.0, help="time per model")
    chosen = parser.parse_args()
    table = Table(title="Pruned to half of the MACs")
    for column in ("model", "widths", "MACs left", "original ms", "pruned ms", "ratio"):
        table.add_column(column)
    for name in chosen.names:
        for row in rows(name, chosen.seconds):
            print(name, *row, file=sys.stderr, flush=True)
            table.add_row(name, *row)
    Console(width=120).print(table)


def rows(name: str, seconds: float) -> list[tuple[str, ...]]:
    """Free and rounded widths of one model."""
    file, batch = MODELS[name]
    trained = file.startswith("models/")
    model: Any = ROOT / file
    data: Any = "models.glyphs:calibration"
    if not trained:
        model, data = (
            ir.from_proto(materialize(ROOT / file)),
            [sample_inputs(ROOT / file, 0, batch)],
        )
    work = open_version(model, data=data)
    found = []
    for widths in (1, 8):
        if trained:
            options = PruneOptions(
                0.5, score="obs", normalise="output", per_cost=True, compensate="refit",
                round_to=widths,
            )  # fmt: skip
        else:
            options = PruneOptions(0.5, scope="local", round_to=widths)
        decision = decide(work, options)
        done = execute(work, Goals(), decision.plan)
        sessions = [work.original.session, Session(done.model, label="pruned")]
        before, after = (
            1000 * float(np.median(t))
            for t in time_runs(sessions, work.job.data.fit.first(), seconds=seconds)
        )
        found.append(
            (
                "free" if widths == 1 else f"multiples of {widths}",
                f"{decision.after / decision.before:.3f}",
                f"{before:.2f}",
                f"{after:.2f}",
                f"{before / after:.2f}",
            )
        )
    return found


if __name__ == "__main__":
    main()
