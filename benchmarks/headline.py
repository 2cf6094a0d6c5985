"""One number: how many times as fast as onnxruntime's best tool, over the models of other tables.

    python -m benchmarks.cpu --json cpu.json
    python -m benchmarks.real_models nudenet ocr-det --json real.json
    python -m benchmarks.headline cpu.json real.json

Of each model and shape: the fastest file of onnxruntime's tools, and the fastest of ours that is
judged no worse than that one (by more than 0.001 of the quality; else our best, marked WORSE). A
tool whose file is slower than float counts as 1, as the float file is there to be used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORSE = 1e-3
_LOWER_IS_BETTER = frozenset({"bits_per_byte"})


@dataclass(frozen=True)
class Made:
    """A file that a tool made. quality: higher is better."""

    tool: str
    speedup: float
    quality: float


def of_cpu(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Made]]]:
    """Rows of `benchmarks.cpu`, by model and shape."""
    for name in dict.fromkeys(row["model"] for row in rows):
        made = [row for row in rows if row["model"] == name and not row["failed"]]
        for shape in made[0]["speedup"]:
            yield (
                f"{name}, {shape}",
                [
                    Made(row["tool"], row["speedup"][shape], _quality(row["quality"]))
                    for row in made
                ],
            )


def _quality(found: Mapping[str, float]) -> float:
    name, value = next(iter(found.items()))
    return -value if name in _LOWER_IS_BETTER else value


def of_real(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Made]]]:
    """Rows of `benchmarks.real_models`, by model: ours are those that look at data."""
    for name in dict.fromkeys(row["model"] for row in rows):
        yield (
            name,
            [
                Made(
                    "lwqc" if row["tool"] == "default" else row["tool"],
                    1 / row["time"],
                    -row["loss"],
                )
                for row in rows
                if row["model"] == name and row["time"] and row["loss"] is not None
                if row["tool"] == "default" or row["tool"].startswith("onnxruntime")
            ],
        )


def compared(made: Sequence[Made]) -> tuple[Made, Made] | None:
    """Ours and onnxruntime's; None where one of them has no file."""
    theirs = [m for m in made if m.tool.startswith("onnxruntime")]
    ours = [m for m in made if m.tool.startswith("lwqc") and "--no-quantize" not in m.tool]
    if not theirs or not ours:
        return None
    best = max(theirs, key=lambda m: m.speedup)
    as_good = [m for m in ours if m.quality >= best.quality - _WORSE]
    if as_good:
        return max(as_good, key=lambda m: m.speedup), best
    return max(ours, key=lambda m: m.quality), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    ratios: list[float] = []
    print("| model | lwqc x | quality | onnxruntime's best x | quality | ratio | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for file in parser.parse_args().files:
        rows = json.loads(file.read_text())
        for name, made in of_cpu(rows) if "speedup" in rows[0] else of_real(rows):
            pair = compared(made)
            if pair is None:
                print(f"| {name} | | | | | | one of them made no file |")
                continue
            our, their = pair
            ratios.append(our.speedup / max(their.speedup, 1.0))
            word = "WORSE" if our.quality < their.quality - _WORSE else ""
            print(
                f"| {name} | {our.speedup:.2f} | {our.quality:.4f} | {their.speedup:.2f} "
                f"({their.tool}) | {their.quality:.4f} | {ratios[-1]:.2f} | {word} |"
            )
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    print(f"\nGeometric mean over {len(ratios)} rows: {mean:.2f}")


if __name__ == "__main__":
    main()
