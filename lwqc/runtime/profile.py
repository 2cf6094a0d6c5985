"""Where the time of a run goes, by operator, as the runtime's profiler tells it."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from lwqc.model.scratch import temporary_folder, unwritable
from lwqc.runtime.loadable import Loadable
from lwqc.runtime.session import Feeds, Session, SessionSettings
from lwqc.runtime.settling import is_known
from lwqc.runtime.timer import longest_s

_RUNS, _WARM_UP = 10, 2
_KNOWN = 1.03  # runs whose median is known this closely have parts that are known well enough
_TIME, _RUN = "_kernel_time", "model_run"


@dataclass(frozen=True)
class OperatorTime:
    """Milliseconds that the nodes of one operator take in a run, and how many there are."""

    milliseconds: float
    nodes: int


def operator_times(model: Loadable, feeds: Feeds) -> dict[str, OperatorTime]:
    """Median times by operator type of the optimised graph, in a session of its own.

    Of ten runs, or as few as take equally long, or `longest_s`; without those that the runtime's
    profile no longer has room for, which is nothing where that is not one run.
    Nodes in subgraphs are counted with their own operator and again within the one that runs them.
    Raises InputError where there is no room for temporary files.
    """
    with temporary_folder() as folder:
        settings = SessionSettings(profile=str(folder / "profile"))
        session = Session(model, settings, label="profiled model")
        for _ in range(_WARM_UP):
            session(feeds)
        took: list[float] = []
        most = longest_s()
        while len(took) < _RUNS and sum(took) < most and not is_known(took, _KNOWN):
            took.append(session.seconds(feeds))
        try:
            events = json.loads(Path(session.profile()).read_text())
        except ValueError as error:  # the runtime does not say that it could not write it whole
            raise unwritable() from error
    kernels = [
        (e["args"]["op_name"], e["name"], e["ts"], e["dur"])
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith(_TIME)
    ]
    runs = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == _RUN]
    runs = runs[_WARM_UP:] or runs  # the runtime notes a million events, and not the rest
    begun = [start for start, _ in runs]
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    nodes: dict[str, set[str]] = defaultdict(set)
    for op, name, start, duration in kernels:
        run = bisect_right(begun, start) - 1
        if run >= 0 and start < runs[run][1]:
            spent[op][run] += duration / 1e3
            nodes[op].add(name)
    return {op: OperatorTime(statistics.median(own), len(nodes[op])) for op, own in spent.items()}
