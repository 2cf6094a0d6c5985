"""GPTQ of a made-up decoder by one process, by one worker of a Dask cluster, and by two.

`python -m benchmarks.cluster` makes a decoder of random weights (`decoder.py`) and token ids, and
prints a markdown table. All compute with one thread each, workers in processes of their own on this
machine. *encoding*: seconds from Gram matrices to codes on the disk. *whole*: of `lwqc.quantize`
and `save`, from the model's file to the result's, not verified. Medians of rounds in turns; ratios
are to the process alone. Nothing is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from distributed import LocalCluster

import lwqc
from benchmarks.decoder import build
from benchmarks.door import processor
from lwqc.compile.encoded_on_cluster import ClusterEncoding
from lwqc.compile.encoding_task import maker
from lwqc.compile.kept_parts import KeptParts
from lwqc.decide.compress import open_version
from lwqc.plans.plan import SiteEntry
from lwqc.runtime.cluster import connected
from lwqc.runtime.one_thread import one_thread

SHAPE = (3, 768, 2048, 4096)  # layers, width, hidden width, vocabulary
SAMPLES, TOKENS, ROUNDS = 16, 128, 3
WORKERS = (0, 1, 2)  # 0: this process alone
ENTRY = SiteEntry(weight="w4b32h", method="gptq")


def encoding_s(folder: Path, address: str) -> float:
    """Seconds of encoding alone: statistics are there before."""
    model, data = folder / "decoder.onnx", str(folder / "data.npz")
    work = open_version(model, data=data, cluster=address, skip_checks=True)
    entries = {site: ENTRY for site in work.sites if not work.grams.reason(site)}
    with tempfile.TemporaryDirectory(dir=folder) as place, ExitStack() as stack:
        kept = KeptParts(Path(place) / "out.onnx", "benchmark")
        work.weights.keep_in(kept)
        cluster = stack.enter_context(connected(address)) if address else None
        for site in entries:
            work.grams(site)
        start = time.perf_counter()
        if cluster is None:
            for site in entries:
                work.weights.ensure(site, ENTRY)
        else:
            sent = kept.path / "sent"
            ClusterEncoding(cluster, address, work.weights, folder=sent).encode(entries)
        return time.perf_counter() - start


def whole_s(folder: Path, address: str) -> tuple[float, str]:
    """Seconds of the whole, and a digest of the file."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "out.onnx"
        start = time.perf_counter()
        done = lwqc.quantize(
            folder / "decoder.onnx",
            bits=4,
            method="gptq",
            data=str(folder / "data.npz"),
            cluster=address,
        )
        done.save(out, external_data=False, verify=False)
        return time.perf_counter() - start, hashlib.sha256(out.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shape", type=int, nargs=4, default=SHAPE, help="as `decoder.build`")
    parser.add_argument("--folder", type=Path, default=None, help="where to put 1 GB for a while")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name, ExitStack() as clusters:
        folder = Path(name)
        parameters = build(folder / "decoder.onnx", tuple(given.shape))
        ids = np.random.default_rng(0).integers(0, given.shape[3], (SAMPLES, TOKENS))
        np.savez(folder / "data.npz", ids=ids)
        print(f"{processor()}; {parameters / 1e6:.0f}M parameters; {given.rounds} rounds\n")
        addresses = {0: ""}
        start: Any = LocalCluster  # which has no annotations
        for count in WORKERS[1:]:
            cluster = clusters.enter_context(
                start(n_workers=count, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
            )
            addresses[count] = cluster.scheduler_address
            with connected(addresses[count]) as connection:
                connection.client.run(maker)  # imports what workers need, which is not counted
        encoding, whole, digests = defaultdict(list), defaultdict(list), defaultdict(set)
        for i in range(given.rounds):
            for count in WORKERS if i % 2 == 0 else reversed(WORKERS):
                encoding[count].append(encoding_s(folder, addresses[count]))
                seconds, digest = whole_s(folder, addresses[count])
                whole[count].append(seconds)
                digests[count].add(digest)
        print("| encoded by | encoding s | ratio | whole s | ratio | same bytes |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        for count in WORKERS:
            one, all_ = (statistics.median(found[count]) for found in (encoding, whole))
            ratios = (statistics.median(found[0]) for found in (encoding, whole))
            first, second = (x / y for x, y in zip(ratios, (one, all_), strict=True))
            who = f"{count} worker{'s' * (count > 1)}" if count else "this process"
            same = "yes" if digests[count] == digests[0] and len(digests[0]) == 1 else "NO"
            print(f"| {who} | {one:.1f} | {first:.2f} | {all_:.1f} | {second:.2f} | {same} |")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    os.environ["LWQC_THREADS"] = "1"  # of sessions, which take statistics
    with one_thread():
        main()
