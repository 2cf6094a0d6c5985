"""Files of any tool side by side: what they are made of, what they compute, how fast they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lwqc.compile.losses import divergences
from lwqc.compile.version import Version
from lwqc.errors import SessionError
from lwqc.graph.cost import node_costs, total
from lwqc.model import io
from lwqc.model.data_files import stored_bytes
from lwqc.runtime.measure import Latency, latencies, worst_drop
from lwqc.runtime.proof import prove
from lwqc.runtime.session import Session
from lwqc.runtime.stats.divergence import Divergence


@dataclass(frozen=True)
class Stored:
    """Tensors of one number type in a file."""

    tensors: int
    size_bytes: int


@dataclass(frozen=True)
class ComparedFile:
    """What is known of one file.

    operators: nodes by operator, with its domain unless that is ONNX's own, bodies and functions
    included. stored: tensors by number type, most bytes first. parameters: of the main graph and
    its bodies, packed ones counted one by one. divergence: of outputs that the first file has too,
    empty for itself. metric: None where there is none. latencies: by sizes of the inputs. failed:
    why it was not run, or its outputs not compared; "" where they were.
    """

    name: str
    size_bytes: int
    opset: int
    producer: str
    operators: Mapping[str, int]
    stored: Mapping[str, Stored]
    parameters: int
    divergence: Mapping[str, Divergence] = field(default_factory=dict)
    metric: float | None = None
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    failed: str = ""

    @property
    def nodes(self) -> int:
        """How many there are."""
        return sum(self.operators.values())

    @property
    def drop(self) -> float | None:
        """Loss of the output that moved most; None where none was compared."""
        return worst_drop(self.divergence) if self.divergence else None


@dataclass(frozen=True)
class SideBySide:
    """Files in the order in which they were given; the first is what others are compared with."""

    files: tuple[ComparedFile, ...]
    data: str
    data_kind: str
    metric: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "data": self.data,
            "metric": self.metric,
            "files": [{**asdict(f), "nodes": f.nodes, "drop": f.drop} for f in self.files],
        }


def side_by_side(work: Version, paths: Sequence[Path], seconds: float) -> SideBySide:
    """Compare files on the data of a job, whose original is the first of them.

    seconds: of timing per file and shape. A file that does not take the inputs of the first one,
    or shares no output with it, is told of as such. Raises InputError for what is no model, and
    where the first one does not run.
    """
    models = [io.load(path) for path in paths]
    found = [_facts(model, path) for model, path in zip(models, paths, strict=True)]
    sessions = {0: work.original.session}
    work.original.session(work.job.data.fit.first())
    for number, path in enumerate(paths[1:], 1):
        try:
            sessions[number] = _session(work, models[number], path)
            found[number]["divergence"] = _divergence(work, sessions[number], path)
        except SessionError as error:
            found[number]["failed"] = str(error)
    if (metric := work.job.metric) is not None:
        for number, session in sessions.items():
            found[number]["metric"] = metric(session)
    for number, times in _times(work, sessions, seconds).items():
        found[number]["latencies"] = times
    data = work.job.data.fit
    files = tuple(ComparedFile(**f) for f in found)
    return SideBySide(files, data.description, data.kind, metric.name if metric else None)


def _session(work: Version, model: ir.Model, path: Path) -> Session:
    """A file that takes all inputs of the first one that are timed. Raises SessionError."""
    label = str(path)
    prove(model, work.job.data.fit.first(), label)
    session = Session(path, label=label)
    for served in work.job.data.serve:
        session(served.feeds)
    return session


def _divergence(work: Version, session: Session, path: Path) -> dict[str, Divergence]:
    """From the first file. Raises SessionError where no output is of the same name."""
    own = work.original.session.outputs
    if set(own).isdisjoint(session.outputs):
        has, other = ", ".join(own), ", ".join(session.outputs)
        raise SessionError(f"{path}: its outputs are {other}, and none is of the first's, {has}")
    return divergences(work, session)


def _times(
    work: Version, sessions: Mapping[int, Session], seconds: float
) -> dict[int, dict[str, Latency]]:
    """By file and by sizes of the inputs; all files take turns."""
    found: dict[int, dict[str, Latency]] = {number: {} for number in sessions}
    for served in work.job.data.serve:
        times = latencies(list(sessions.values()), served.feeds, seconds)
        for number, time in zip(sessions, times, strict=True):
            found[number][served.label] = time
    return found


def _facts(model: ir.Model, path: Path) -> dict[str, Any]:
    """What the file itself tells."""
    return {
        "name": str(path),
        "size_bytes": stored_bytes(model),
        "opset": int(model.opset_imports.get("", 1)),
        "producer": f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        "operators": _operators(model),
        "stored": _stored(model),
        "parameters": total(node_costs(model.graph, {})).parameters,
    }


def _operators(model: ir.Model) -> dict[str, int]:
    graphs: Iterable[ir.Graph | ir.Function] = (model.graph, *model.functions.values())
    nodes = (node for graph in graphs for node in graph.all_nodes())
    names = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes)
    return dict(names.most_common())


def _stored(model: ir.Model) -> dict[str, Stored]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                name = value.const_value.dtype.name.lower()
                counts[name] += 1
                sizes[name] += int(value.const_value.nbytes)
    return {name: Stored(counts[name], size) for name, size in sizes.most_common()}
