"""Where the time of a run goes, by operator, as the runtime's profiler tells it."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lwqc.model.scratch import temporary_folder, unwritable
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.session import Feeds, Session, SessionSettings
from lwqc.runtime.settling import Settled, is_known
from lwqc.runtime.timer import longest_s, time_turns

_RUNS, _WARM_UP = 10, 2
_KNOWN = 1.03  # runs whose median is known this closely have parts that are known well enough
_TIME, _RUN = "_kernel_time", "model_run"


@dataclass(frozen=True)
class OperatorTime:
    """Milliseconds that the nodes of one operator take in a run, and how many there are."""

    milliseconds: float
    nodes: int


@dataclass(frozen=True)
class _Kernel:
    """One node in one run."""

    op: str
    name: str
    seconds: float


def operator_times(model: Loadable, feeds: Feeds) -> dict[str, OperatorTime]:
    """Median times by operator type of the optimised graph, in a session of its own.

    Of ten runs, or as few as take equally long, or `longest_s`; without those that the runtime's
    profile no longer has room for, which is nothing where that is not one run.
    Nodes in subgraphs are counted with their own operator and again within the one that runs them.
    Raises InputError where there is no room for temporary files.
    """
    with _profiled([model], "profiled model") as (session,):
        for _ in range(_WARM_UP):
            session(feeds)
        took: list[float] = []
        most = longest_s()
        while len(took) < _RUNS and sum(took) < most and not is_known(took, _KNOWN):
            took.append(session.seconds(feeds))
        runs = _runs(session)
    runs = runs[_WARM_UP:] or runs  # the runtime notes a million events, and not the rest
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    nodes: dict[str, set[str]] = defaultdict(set)
    for number, run in enumerate(runs):
        for kernel in run:
            spent[kernel.op][number] += kernel.seconds
            nodes[kernel.op].add(kernel.name)
    return {
        op: OperatorTime(1e3 * statistics.median(own), len(nodes[op])) for op, own in spent.items()
    }


def kernel_seconds(
    models: Sequence[Loadable],
    feeds: Feeds,
    *,
    seconds: float,
    without: Collection[str] = (),
    settled: Settled = lambda times: (),
    label: str,
) -> list[list[float]]:
    """Seconds that the kernels of each run take together, one list per model.

    Each model has a session of its own, and they take turns as in `time_turns`. What a run takes
    beside its kernels does not count, nor do operators `without`: those that the runtime puts
    around one for its own order of the channels, which in a larger graph neighbours share.
    Raises InputError as `operator_times` does.
    """
    with _profiled(models, label) as sessions:
        time_turns(sessions, feeds, seconds=seconds, settled=settled)
        return [
            [sum(k.seconds for k in run if k.op not in without) for run in _runs(session)]
            for session in sessions
        ]


@contextmanager
def _profiled(models: Sequence[Loadable], label: str) -> Iterator[list[Session]]:
    """Sessions whose times the runtime notes."""
    with temporary_folder() as folder:
        yield [
            Session(model, SessionSettings(profile=str(folder / f"profile{i}")), label=label)
            for i, model in enumerate(models)
        ]


def _runs(session: Session) -> list[list[_Kernel]]:
    """What ran in each run that was noted; ends the profile."""
    try:
        events = json.loads(Path(session.profile()).read_text())
    except ValueError as error:  # the runtime does not say that it could not write it whole
        raise unwritable() from error
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == _RUN]
    begun = [start for start, _ in spans]
    found: list[list[_Kernel]] = [[] for _ in spans]
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_TIME):
            continue
        run = bisect_right(begun, event["ts"]) - 1
        if run >= 0 and event["ts"] < spans[run][1]:
            kernel = _Kernel(event["args"]["op_name"], event["name"], event["dur"] / 1e6)
            found[run].append(kernel)
    return found
