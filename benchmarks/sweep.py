"""Every recipe on every shipped model: is a file slower, and did the report say so?

    python -m benchmarks.sweep [MODEL ...] [--recipe R ...] [--json FILE]

MODEL: a shipped model by name, all by default. A row for each recipe that is for the CPU: size, and
time over the original's, as the report says it and as it is here, in turns, after all is saved. A
file that is more than 1.02 times as slow here, and no slower in the report, is marked SILENT. Most
recipes end in seconds with `LWQC_TIMING_S=0.1`, which makes their choices by time coarser.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

import lwqc
from benchmarks.door import processor
from lwqc.errors import LwqcError
from lwqc.plans.recipe import named
from models import digits, glyphs, stdlib_lm
from models.training import FOLDER

_SLOWER = 1.02
Feeds = Mapping[str, NDArray[Any]]
# A recipe without a bound of its own gets the first of these that it takes.
BOUNDS: tuple[dict[str, Any], ...] = ({}, {"max_size": 0.35}, {"max_macs": 0.7}, {"max_drop": 0.02})
MODELS: dict[str, tuple[Path, Callable[[], Iterator[Feeds]]]] = {
    "digits": (digits.MODEL, digits.calibration),
    **{
        name: (FOLDER / f"{name}.onnx", glyphs.calibration)
        for name in ("glyph_resnet", "glyph_mobilenet", "glyph_shufflenet", "glyph_vit")
    },
    "stdlib_lm": (stdlib_lm.MODEL, stdlib_lm.calibration),
}


@dataclass
class Row:
    """One recipe on one model. time, said: over the original's, here and by the report."""

    model: str
    recipe: str
    bound: str
    seconds: float
    size: float | None = None
    said: float | None = None
    time: float | None = None
    failed: str = ""

    @property
    def silent(self) -> bool:
        """Whether the file is slower than the report admits."""
        return self.time is not None and self.time > _SLOWER and (self.said or 0) <= 1


def swept(model: str, recipe: str, folder: Path) -> Row:
    """The first bound that the recipe takes; one line of the last error where it takes none."""
    path, samples = MODELS[model]
    data, out, error = list(samples()), folder / "out.onnx", ""
    start = time.perf_counter()
    for bound in BOUNDS:
        try:
            report = lwqc.compress(path, data=data, recipe=recipe, **bound).save(out)
        except LwqcError as failure:
            error = str(failure)
            continue
        row = Row(model, recipe, str(bound or ""), time.perf_counter() - start)
        before, after = lwqc.bench(path, out, data=data[:1])
        row.size = report.output_bytes / report.source_bytes
        row.said = None if report.speedup is None else 1 / report.speedup
        row.time = after.relative / before.relative
        return row
    return Row(model, recipe, "", time.perf_counter() - start, failed=error)


def shown(row: Row) -> str:
    numbers = ["" if n is None else f"{n:.2f}" for n in (row.size, row.said, row.time)]
    words = "SILENT" if row.silent else row.failed
    return (
        " | ".join([f"| {row.model}", row.recipe, row.bound, f"{row.seconds:.0f}", *numbers, words])
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--recipe", action="append", default=[], help="only this one")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(processor(), f"onnxruntime {ort.__version__}")
    print("| model | recipe | bound | s | size | time, report | time, here | |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- |")
    rows = []
    for model in asked.models:
        for recipe in asked.recipe or sorted(named()):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(swept(model, recipe, Path(folder)))
            print(shown(rows[-1]), flush=True)
    slower = [r for r in rows if r.time is not None and r.time > _SLOWER]
    print(f"{len(rows)} rows, {len(slower)} slower, {sum(r.silent for r in rows)} of them silent")
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
