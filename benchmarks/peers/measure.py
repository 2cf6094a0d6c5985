"""Other tools beside lwqc on the same three tasks, each in an environment of its own.

    python -m benchmarks.peers.measure FOLDER DETECTOR.onnx PHOTOS lwqc=python nncf=.../bin/python

writes what each tool makes to FOLDER, and prints how long it took. `lwqc compare` does the rest: it
takes files of any tool.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lwqc.model import io
from lwqc.runtime.data import open_data
from models.glyphs import calibration as glyphs
from models.stdlib_lm import calibration as tokens

SCRIPTS = {
    "ort": "ort.py",
    "nncf": "neural_compression.py",
    "modelopt": "model_optimizer.py",
    "onnxsim": "simplifier.py",
    "olive": "olive.py",
}
PREPARED = "size=320,letterbox,range=0..1"
LWQC = {
    "detector": ["compress", "--data", "{photos}", "--preprocess", PREPARED],
    "classifier": ["compress", "--data", "models.glyphs:calibration"],
    "language": ["quantize", "--bits", "4", "--data", "models.stdlib_lm:calibration"],
}
_MOST_S = 540.0  # for one file


def main() -> None:
    folder, detector, photos = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3]
    folder.mkdir(parents=True, exist_ok=True)
    images = list(open_data(photos, io.load(detector), preprocess=PREPARED))
    inputs = {"detector": images, "classifier": list(glyphs()), "language": list(tokens())}
    sources = {
        "detector": detector.resolve(),
        "classifier": Path("models/glyph_vit.onnx").resolve(),
        "language": Path("models/stdlib_lm.onnx").resolve(),
    }
    for task, feeds in inputs.items():
        first = feeds[0]
        arrays = {name: np.concatenate([one[name] for one in feeds]) for name in first}
        np.savez(folder / f"{task}.npz", **arrays)
    print("| task | tool | s | what came of it |", flush=True)
    for task, source in sources.items():
        for argument in sys.argv[4:]:
            tool, _, python = argument.partition("=")
            script = Path(__file__).with_name(SCRIPTS[tool]) if tool in SCRIPTS else None
            output = folder / f"{task}-{tool}.onnx"
            if script is None:
                own = [word.format(photos=photos) for word in LWQC[task]]
                line = [python, "-m", "lwqc.cli", own[0], source, "-o", output, *own[1:]]
            else:
                line = [python, script, task, source, folder / f"{task}.npz", output]
            print(f"| {task} | {tool} | {_made([str(p) for p in line], output)} |", flush=True)


def _made(line: list[str], output: Path) -> str:
    begun = time.perf_counter()
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_MOST_S)
    except subprocess.TimeoutExpired:
        return f"{_MOST_S:.0f} | not done by then"
    seconds = time.perf_counter() - begun
    if done.returncode or not output.exists():
        return f"{seconds:.0f} | failed: {' '.join(done.stderr.strip().splitlines()[-1:])[:200]}"
    return f"{seconds:.0f} | {output.stat().st_size / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
