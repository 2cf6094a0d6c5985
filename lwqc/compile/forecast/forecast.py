"""What a job within a bound on memory will take: time, memory and traffic, before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lwqc.compile.compressed import Compressed
from lwqc.compile.forecast.stages import Stage, Workload
from lwqc.compile.steps.table import of
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.plans.plan import Plan, Source
from lwqc.runtime.cluster import connected
from lwqc.runtime.memory import own_memory
from lwqc.runtime.parts import Room

_FORETOLD = frozenset({"opset", "clean", "quantize"})  # the others take time that is not counted


@dataclass(frozen=True)
class Forecast:
    """stages: in their order. room: the bound. own: bytes of this process without any model.

    so_far: the most that it had. output_bytes: of the file that the job writes, 0 without one.
    unknown: nodes whose work is not counted.
    """

    stages: tuple[Stage, ...]
    room: Room
    own: int
    so_far: int
    output_bytes: int = 0
    unknown: int = 0

    @property
    def seconds(self) -> float:
        """On the clock, while the machine does nothing else."""
        return float(sum(s.seconds[0] for s in self.stages))

    @property
    def processor_seconds(self) -> float:
        """Of this process, its threads together."""
        return float(sum(s.seconds[1] for s in self.stages))

    @property
    def memory(self) -> int:
        """Bytes that this process has at most, pages of mapped files included."""
        return max(self.so_far, *(self.own + s.memory for s in self.stages))

    @property
    def read(self) -> int:
        """Bytes, of files."""
        return sum(s.read for s in self.stages)

    @property
    def sent(self) -> int:
        """Bytes, to workers and back."""
        return sum(s.sent for s in self.stages)

    @property
    def written(self) -> int:
        """Bytes, to files."""
        return sum(s.written for s in self.stages)


def of_result(done: Compressed, *, verify: bool = True) -> Forecast:
    """Of encoding, writing and checking what was decided. Raises InputError.

    Nothing of it is done. done: of a version whose checks are skipped. verify: whether the job
    itself checks.
    """
    work = done.coded
    _check(done.decisions)
    room, own = _room(work), own_memory()  # before speeds are measured, which takes memory
    begun, load = _so_far(), Workload(work, done.decisions)
    found = [
        begun,
        load.ranges() if verify else None,
        load.statistics(),
        load.encoding(_workers(work)),
        load.writing(done.model),
    ]
    if verify:
        found.append(load.checking(done.model, written=True))
    stages = tuple(s for s in found if s is not None)
    return Forecast(stages, room, *own, io.serialized_bytes(done.model), load.unknown)


def of_comparison(work: Version, candidate: ir.Model) -> Forecast:
    """Of comparing another model with the one that was opened. Raises InputError."""
    room, own = _room(work), own_memory()
    nothing = Plan(source=Source(name=work.name), target=work.job.target.name)
    begun, load = _so_far(), Workload(work, nothing)
    return Forecast((begun, load.checking(candidate)), room, *own, unknown=load.unknown)


def _workers(work: Version) -> int:
    """Threads that the cluster has now; 0 without one. Raises InputError."""
    if not work.job.cluster:
        return 0
    with connected(work.job.cluster) as cluster:
        return max(cluster.threads, 1)


def _check(plan: Plan) -> None:
    """Raises InputError for what is not foretold."""
    for step in of(plan):
        if step.field not in _FORETOLD and getattr(plan, step.field):
            raise InputError(f"--dry-run does not foretell the plan's step {step.field}")
    if any(entry.has_side for entry in plan.quantize.values()):
        raise InputError("--dry-run does not foretell float branches beside weights")


def _room(work: Version) -> Room:
    if work.job.room is None:
        raise InputError("--dry-run foretells jobs within a bound on memory: give --memory")
    return work.job.room


def _so_far() -> Stage:
    """What opening and deciding took of the processor, which a dry run does too."""
    return Stage("deciding", np.full(2, time.process_time()))
