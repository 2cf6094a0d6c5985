"""4-bit weights with 8-bit activations: bytes, time and load of the ways to have them.

    python -m benchmarks.four_by_eight [--rounds N] [--json FILE]

`w8a8-dynamic` is what the integer kernel does with 8-bit weights, `blocks` 4-bit weights with float
scales of blocks of 32, which MatMulNBits multiplies by blocks of 8-bit activations; `dgq` and
`zeroquant-fp` are 4 bits in the file and integers of 8 bits once loaded. Times are processor time
on one thread, every file in turn, as a share of the float model's in the same round; median of all
rounds. `load` is the processor time of making a session.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lwqc.backends.cpu_rules import probed
from lwqc.decide.compress import compress_version, open_version
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import Recipe, find, uniform_recipe
from lwqc.runtime.session import Session, SessionSettings

ROOT = Path(__file__).parents[1]
RECIPES: dict[str, str | Recipe] = {
    "w8a8-dynamic": "w8a8-dynamic",
    "blocks": uniform_recipe(4, "dynamic", "mse", method="gptq-order"),
    "dgq": "dgq",
    "dgq, not smoothed": find("dgq").model_copy(update={"migrate": "none"}),
    "zeroquant-fp": "zeroquant-fp",
}
DATA = {"glyph_vit": "models.glyphs:calibration", "stdlib_lm": "models.stdlib_lm:calibration"}
Feeds = dict[str, np.ndarray[Any, Any]]
_SECONDS = 0.25  # of processor time in each turn


def feeds_of(name: str) -> dict[str, Feeds]:
    """By label."""
    rng = np.random.default_rng(0)
    if name == "glyph_vit":
        images = rng.random((32, 1, 32, 32), np.float32)
        return {"32 images": {"image": images}, "1 image": {"image": images[:1]}}
    tokens = rng.integers(0, 256, (4, 128))
    return {"4 x 128 tokens": {"input_ids": tokens}, "1 x 8 tokens": {"input_ids": tokens[:1, :8]}}


def processor_time(run: Session, feeds: Feeds) -> float:
    """Seconds of one run."""
    count, start = 0, time.process_time()
    while time.process_time() - start < _SECONDS:
        run(feeds)
        count += 1
    return (time.process_time() - start) / count


def measured(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each file."""
    work = open_version(ROOT / f"models/{name}.onnx", data=DATA[name])
    models: dict[str, ir.Model] = {"float": io.load(ROOT / f"models/{name}.onnx")}
    for label, recipe in RECIPES.items():
        models[label] = compress_version(work, Goals(), recipe).model
    sessions, loads = {}, {}
    for label, model in models.items():
        start = time.process_time()
        sessions[label] = Session(model, SessionSettings(threads=1), label=label)
        loads[label] = time.process_time() - start
    feeds = feeds_of(name)
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for shape, given in feeds.items():
            now = {label: processor_time(run, given) for label, run in sessions.items()}
            for label, seconds in now.items():
                times.setdefault((label, shape), []).append(seconds / now["float"])
    return [
        {
            "model": name,
            "what": label,
            "bytes": io.serialized_bytes(model),
            "load": loads[label],
            **{shape: statistics.median(times[label, shape]) for shape in feeds},
        }
        for label, model in models.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    print(f"rules of this processor: {probed().name}\n")
    found = []
    for name in DATA:
        rows = measured(name, chosen.rounds)
        found += rows
        print("| " + " | ".join(rows[0]) + " |\n| " + " | ".join("---" for _ in rows[0]) + " |")
        for row in rows:
            cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
            print(f"| {' | '.join(cells)} |")
        print(flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
