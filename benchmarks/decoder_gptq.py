"""GPTQ of a 336M-parameter decoder (1.3 GB) in bounded memory, beside round to nearest.

`python -m benchmarks.decoder_gptq` makes the model of `decoder.py` and random token ids (64 samples
of 128), runs each method in a process of its own, and prints a markdown table. Nothing is kept.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.decoder import HIDDEN, LWQC, VOCABULARY, build, run
from lwqc.compile.site_grams import SiteGrams
from lwqc.graph.sites import find_sites
from lwqc.model import io

SAMPLES, TOKENS, ROUNDS = 64, 128, 1
METHODS = {
    "RTN": LWQC,
    "GPTQ": [*LWQC, "--method", "gptq", "--data", "{data}"],
}


def largest_segment(model: Path, data: Path) -> float:
    """MB of weights and Gram matrices in the largest part that the model runs in."""
    loaded = io.load(model)
    ids = np.load(data)["ids"][:8]
    grams = SiteGrams(loaded, find_sites(loaded).sites, [{"ids": ids}])
    return max(s.held_bytes for s in grams.segments) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=None, help="where to put 2 GB for a while")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        model, data = Path(folder) / "decoder.onnx", Path(folder) / "data.npz"
        parameters = build(model)
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (SAMPLES, TOKENS))
        np.savez(data, ids=ids)
        print(f"{parameters / 1e6:.0f}M parameters, {SAMPLES} samples of {TOKENS} tokens")
        print(f"largest segment and its Gram matrices: {largest_segment(model, data):.0f} MB")
        print(f"one Gram matrix [{HIDDEN}, {HIDDEN}]: {8 * HIDDEN**2 / 1e6:.0f} MB")
        rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in METHODS}
        for i in range(arguments.rounds):
            for name in METHODS if i % 2 == 0 else reversed(METHODS):
                command = [part.replace("{data}", str(data)) for part in METHODS[name]]
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    rows[name].append(run(command, model, Path(target) / "out.onnx"))
        print("\n| method | seconds | processor s | peak MB | size MB |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, found in rows.items():
            seconds, processor, peak, size = np.median(np.array(found), axis=0)
            print(f"| {name} | {seconds:.1f} | {processor:.1f} | {peak:.0f} | {size:.0f} |")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.reconfigure(line_buffering=True)
    main()
