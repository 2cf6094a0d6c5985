"""Keys and values of earlier tokens in float and in 8 bits: speed of decoding, size, quality.

    python -m benchmarks.kv_cache [--threads 2] [--rounds 60]

One token of `models/stdlib_lm_past.onnx` behind contexts of several lengths, at batch 1: the model
as exported, cleaned up, and `lwqc compress` with default options for decoding; the last two with
caches as they are and with `--kv-cache int8`. Medians of runs in alternating order. The past comes
from running the original; each run is given it and gives it back with one token more, as a plain
session does it, so that copying the cache is part of every row. Bits per byte: of windows in two
runs, the second with the keys and values of the first as its past. The model was trained on windows
of 256 tokens: what it says behind longer contexts is worth nothing, what they cost is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.door import processor
from lwqc import compress
from lwqc.runtime.session import Session, SessionSettings
from models import stdlib_lm
from models.stdlib_lm import MODEL_PAST

CONTEXTS = (128, 512, 2048, 4096)
DECODE = {"batch": 1, "sequence": 1, "past": 127}
HEADS, SIZE = 2, 24


def made(folder: Path, name: str, **options: Any) -> Path:
    """A compressed file."""
    path = folder / f"{name}.onnx"
    compress(MODEL_PAST, data="models.stdlib_lm:calibration_past", **options).save(path)
    return path


def models(folder: Path) -> dict[str, Path]:
    """Name -> file."""
    found = {"as exported": MODEL_PAST}
    for name, options in (
        ("cleaned up", {"recipe": "clean"}),
        ("default", {"max_drop": 0.01, "shapes": DECODE}),
    ):
        for cache, more in (("float", {}), ("int8", {"kv_cache": "int8"})):
            found[f"{name}, {cache} cache"] = made(folder, f"{name}-{cache}", **options, **more)
    return found


def contexts(session: Session) -> Mapping[int, Mapping[str, Any]]:
    """Length -> feeds of one more token, with the past of a run of the original."""
    tokens = np.load(MODEL_PAST.with_name("stdlib_lm_eval.npz"))["calibration_tokens"].reshape(
        1, -1
    )
    tokens = np.tile(tokens, (1, -(-(max(CONTEXTS) + 1) // tokens.size))).astype(np.int64)
    pasts = [n for n in session.inputs if n != "input_ids"]
    empty = {name: np.zeros((1, HEADS, 0, SIZE), np.float32) for name in pasts}
    whole = session({"input_ids": tokens[:, : max(CONTEXTS)], **empty})
    cache = {name: whole[name.replace("past", "present")] for name in pasts}
    return {
        length: {
            "input_ids": tokens[:, length : length + 1],
            **{n: np.ascontiguousarray(a[:, :, :length]) for n, a in cache.items()},
        }
        for length in CONTEXTS
    }


def milliseconds(
    sessions: Mapping[str, Session], feeds: Mapping[str, Any], rounds: int
) -> dict[str, float]:
    # Codes, so that making them of a float past is no part of a run.
    given = {name: session.coded(feeds) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    order = list(sessions)
    for turn in range(rounds + 3):
        for name in order:
            seconds = sessions[name].seconds(given[name])
            if turn >= 3:
                times[name].append(1e3 * seconds)
        order.reverse()
    return {name: statistics.median(own) for name, own in times.items()}


def halves(session: Session) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A run of whole windows in two, the second with the first's keys and values."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        ids = feeds["input_ids"]
        middle = ids.shape[1] // 2
        first = session({"input_ids": ids[:, :middle], **stdlib_lm.empty_past(len(ids))})
        past = {n: first[n.replace("past", "present")] for n in session.inputs if n != "input_ids"}
        second = session({"input_ids": ids[:, middle:], **past})
        return {"logits": np.concatenate([first["logits"], second["logits"]], 1)}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    os.environ["LWQC_THREADS"] = str(given.threads)
    settings = SessionSettings(threads=given.threads)
    with tempfile.TemporaryDirectory() as folder:
        sessions = {n: Session(path, settings) for n, path in models(Path(folder)).items()}
    feeds = contexts(sessions["as exported"])
    rows = {length: milliseconds(sessions, one, given.rounds) for length, one in feeds.items()}
    print(f"{processor()}; {given.threads} threads, {given.rounds} rounds; milliseconds a token\n")
    print("| model | bytes a token | " + " | ".join(f"{n} tokens" for n in rows) + " | bits/byte |")
    print("| --- " * (len(rows) + 3) + "|")
    for name, session in sessions.items():
        width = 1 if session.caches.inputs else 4
        bytes_ = width * HEADS * SIZE * (len(session.inputs) - 1)
        cells = " | ".join(f"{row[name]:.2f}" for row in rows.values())
        bits = stdlib_lm.bits_per_byte(halves(session))
        print(f"| {name} | {bytes_} | {cells} | {bits:.4f} |", flush=True)


if __name__ == "__main__":
    main()
