"""Codes that take long, made part by part of a model, here or on a cluster, and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from lwqc.compile.encoded_on_cluster import MOST_SENT, ClusterEncoding
from lwqc.compile.encoding_task import maker
from lwqc.compile.job import Job
from lwqc.compile.kept_parts import KeptParts, parts_of
from lwqc.compile.version import Version
from lwqc.passes.encoded_weights import EncodedWeights, stored_parts
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.runtime.cluster import PATIENCE_S, connected

_RESUMED = "codes that an earlier run had kept were taken as they were"
_NOTHING = "--cluster: no weight of the plan takes long to encode, so all were encoded here"
_LEARNED = "--cluster: what takes long was encoded here, as the step learn reads it"
Encode = Callable[[Mapping[str, SiteEntry]], None]


@contextmanager
def encoded_in_parts(
    version: Version, model: ir.Model, stamped: Callable[[], Plan], output: Path
) -> Iterator[tuple[str, ...]]:
    """Encode what takes long of a plan, for the data to decide in the order of a run.

    version: that the formats were applied to. model: with them; weights that it has no codes of are
    left. stamped: the plan with all that it depends on. What is done is in OUTPUT.parts until the
    block ends without an error; a job that was killed goes on with it. Yields notes for the report.
    Nothing is done where memory has no bound and there is no cluster.
    """
    job = version.job
    if job.room is None and not job.cluster:
        yield ()
        return
    plan = stamped()
    stored = {part.site for _, part in stored_parts(model)}
    entries = {s: e for s, e in plan.quantize.items() if e.takes_long and s in stored}
    if not entries:
        learned = any(entry.takes_long for entry in plan.quantize.values())
        yield ((_LEARNED if learned else _NOTHING),) if job.cluster else ()
        return
    weights, grams = version.weights, version.grams
    parts = grams.in_parts(entries)
    apart = [s for s in entries if s not in {name for part in parts for name in part}]
    notes: list[str] = []
    kept: KeptParts | None = None
    try:
        with _encoding(job, weights, output, notes) as encode:  # without a cluster nothing is begun
            kept = KeptParts(output, _key(job, plan))
            weights.keep_in(kept)
            if job.room is not None:
                grams.keep_in(kept.run)
            notes += [_RESUMED] if kept.resumed else []
            for part in (*parts, apart):
                encode({site: entries[site] for site in part})
                grams.commit()
        yield tuple(notes)
        kept.remove()
    finally:
        weights.keep_in(None)
        grams.keep_in(None)
        if kept is not None:
            kept.close()


def _key(job: Job, plan: Plan) -> str:
    """Digest of all that the codes depend on: model, data, formats, versions and how sums round."""
    told = [plan.text, str(job.room.memory if job.room is not None else None)]
    told += [f"{name} {value}" for name, value in maker().items()] if job.cluster else []
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


@contextmanager
def _encoding(
    job: Job, weights: EncodedWeights, output: Path, notes: list[str]
) -> Iterator[Encode]:
    """What encodes some sites: the workers of a cluster, or this process one by one."""

    def one_by_one(entries: Mapping[str, SiteEntry]) -> None:
        for site, entry in entries.items():
            weights.ensure(site, entry)

    if not job.cluster:
        yield one_by_one
        return
    with connected(job.cluster) as cluster:
        most = MOST_SENT if job.room is None else job.room.share
        folder = parts_of(output) / "sent"
        encoding = ClusterEncoding(cluster, job.cluster, weights, most, folder)
        yield encoding.encode
    if encoding.here:
        notes.append(
            f"--cluster: {encoding.here} weights were encoded here, as no worker had answered for "
            f"{PATIENCE_S / 60:.0f} minutes"
        )
