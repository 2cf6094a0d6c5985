"""How long the clean-up of every architecture of the zoo takes, beside another version of lwqc.

    python -m benchmarks.cleanup --against FOLDER [--rounds 3] [NAME ...]
    python -m benchmarks.cleanup --profile [NAME ...]

FOLDER is a checkout of the other version. Each round is a fresh process per version, in turns and
in alternating order; it cleans every model once, and reading the model does not count. Merging of
layers is left out: the versions decide on it at different times.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

from benchmarks.door import OURS, processor
from tests.zoo.materialize import materialize

ZOO = Path(__file__).parents[1] / "tests" / "zoo"
CHILD = """
import json, sys, time
import onnx_ir as ir
try:
    from lwqc.passes.cleanup import clean_up
except ImportError:
    from lwqc.cleanup import clean_up
times = {}
for name in sys.argv[1:]:
    model = ir.load(name)
    if not times:
        clean_up(model, merge=False)
    start = time.perf_counter()
    clean_up(model, merge=False)
    times[name] = time.perf_counter() - start
print(json.dumps(times))
"""


def seconds(tree: Path, files: list[Path]) -> dict[str, float]:
    """By file, of the lwqc in a folder."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, *map(str, files)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    return json.loads(ran.stdout)


def profile(files: list[Path]) -> None:
    """Print where the time goes: functions by their own time, and passes with what they call."""
    from lwqc.model import io
    from lwqc.passes.cleanup import clean_up

    models = [io.load(file) for file in files]
    clean_up(models[0], merge=False)
    ran = cProfile.Profile()
    for model in models:
        ran.runcall(clean_up, model, merge=False)
    stats = pstats.Stats(ran)
    stats.sort_stats("tottime").print_stats(35)
    stats.sort_stats("cumulative").print_stats("passes|graph/", 60)


def table(trees: dict[str, Path], files: list[Path], rounds: int) -> None:
    """Prints medians of all versions by model, and the ratios of the last to the first."""
    found = {name: {str(file): [] for file in files} for name in trees}
    order = list(trees)
    for _ in range(rounds):
        for name in order:
            for file, time in seconds(trees[name], files).items():
                found[name][file].append(time)
        order.reverse()
    order = list(trees)
    first, last = (found[name] for name in (order[0], order[-1]))
    print(f"{processor()}; {rounds} rounds\n")
    print("| model | " + " | ".join(f"{name} s" for name in trees) + " | ratio |")
    print("| --- " * (len(trees) + 2) + "|")
    medians = {n: {f: statistics.median(t) for f, t in by.items()} for n, by in found.items()}
    for file in map(str, files):
        row = [medians[name][file] for name in trees]
        cells = " | ".join(f"{time:.3f}" for time in row)
        print(f"| {Path(file).stem} | {cells} | {row[-1] / row[0]:.2f} |")
    whole = [sum(medians[name].values()) for name in trees]
    ratios = [statistics.median(last[f]) / statistics.median(first[f]) for f in first]
    print(
        f"| together | {' | '.join(f'{time:.2f}' for time in whole)} | {whole[-1] / whole[0]:.2f} |"
        f"\n\nMedian of the ratios {statistics.median(ratios):.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of the zoo; all by default")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    names = given.names or sorted(file.stem for file in ZOO.glob("*.onnx"))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in names:
            files.append(Path(folder) / f"{name}.onnx")
            model = materialize(ZOO / f"{name}.onnx")
            onnx.save(model, files[-1])
        if given.profile:
            profile(files)
        else:
            against = {"against": given.against} if given.against else {}
            table({**against, "ours": OURS}, files, given.rounds)


if __name__ == "__main__":
    main()
