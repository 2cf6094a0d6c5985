"""What a terminal shows while a command works: gaps without movement, and estimates of the whole.

    python -m benchmarks.progress glyph_vit stdlib_lm drop opt convert 320n=320n.onnx,photos

`NAME=MODEL,DATA` is a detector of 320 x 320 pixels and a folder of images. Each command runs in a
terminal of its own (`pty`), and what it draws is read with the time at which it comes. Estimates of
the whole count from a fifth of the time on.
"""

from __future__ import annotations

import os
import pty
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

MODELS = Path("models")
GLYPHS = ["--data", "models.glyphs:calibration"]
COMMANDS = {
    "glyph_vit": ["compress", MODELS / "glyph_vit.onnx", *GLYPHS, "--max-size", "0.15"],
    "stdlib_lm": [
        "compress", MODELS / "stdlib_lm.onnx", "--data", "models.stdlib_lm:calibration"
    ],
    "drop": ["compress", MODELS / "glyph_mobilenet.onnx", *GLYPHS, "--max-drop", "1%"],
    "opt": ["opt", MODELS / "glyph_vit.onnx", "-p", "clean", "--verify-each"],
    "convert": ["convert", "benchmarks.progress:network"],
}  # fmt: skip
_PREPARED = "size=320,letterbox,range=0..1"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LINE = re.compile(r"(\d+)% .*?(?:about ((?:\d+:)*\d+)(?: s)? left)?  (\S[^\r\n]*)")
_FROM = 0.2  # of the time: from there on estimates count


def network() -> Any:
    """A small network of torch, and its input."""
    import torch

    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 14 * 14, 10)).eval()
    return net, (torch.randn(1, 3, 16, 16),)


@dataclass
class Session:
    """What was drawn. seconds: the whole. drawn: when anything was. estimates: (when, whole)."""

    seconds: float = 0.0
    drawn: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    estimates: list[tuple[float, float]] = field(default_factory=list)
    phases: list[tuple[float, str]] = field(default_factory=list)
    end: str = ""


def record(command: list[str]) -> Session:
    """Run a command in a terminal."""
    begun = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120"}
        os.execvp(command[0], command)
    found, percent, text = Session(drawn=[0.0], moved=[0.0]), "", ""
    while True:
        try:
            read = os.read(terminal, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not read:
            break
        now = time.monotonic() - begun
        found.drawn.append(now)
        text = _CODES.sub("", read.decode(errors="replace"))
        found.end = (found.end + text)[-4000:]
        for line in _LINE.finditer(text):
            if line[1] != percent:
                percent = line[1]
                found.moved.append(now)
            if line[2]:
                found.estimates.append((now, now + _seconds(line[2])))
            phase = line[3].split(":")[0].split(" of ")[0].rstrip("0123456789 ")
            if not found.phases or found.phases[-1][1] != phase:
                found.phases.append((now, phase))
    os.waitpid(child, 0)
    found.seconds = time.monotonic() - begun
    return found


def _seconds(text: str) -> float:
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def gap(times: list[float], end: float) -> float:
    """The longest time between two of them."""
    every = [*times, end]
    return max(b - a for a, b in pairwise(every))


def main() -> None:
    print("| session | s | first line s | longest gap s | of percent s | estimate over truth |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for argument in sys.argv[1:] or list(COMMANDS):
        name, _, files = argument.partition("=")
        model, _, data = files.partition(",")
        detector = ["compress", model, "--data", data, "--preprocess", _PREPARED]
        own = detector if files else COMMANDS[name]
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "small.onnx"
            line = [sys.executable, "-m", "lwqc.cli", *own, "-o", output]
            seen = record([str(part) for part in line])
        late = [whole / seen.seconds for now, whole in seen.estimates if now > _FROM * seen.seconds]
        ratios = f"{min(late):.2f} to {max(late):.2f}" if late else "none"
        first, *later = seen.drawn[1:]
        drawn, moved = gap([first, *later], seen.seconds), gap(seen.moved, seen.seconds)
        gaps = f"{first:.1f} | {drawn:.1f} | {moved:.1f}"
        print(f"| {name} | {seen.seconds:.0f} | {gaps} | {ratios} |", flush=True)
        for now, phase in seen.phases:
            print(f"  {now / seen.seconds:5.2f}  {phase}", file=sys.stderr)
        if "lwqc: " in seen.end:
            print(seen.end[-300:], file=sys.stderr)


if __name__ == "__main__":
    main()
