"""A saved model beside its original, each run in parts, their activations in files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from lwqc.compile.saved_check import Expected, Unlike, compare_outputs
from lwqc.compile.version import Version
from lwqc.errors import InputError, SessionError, UnsoundResult
from lwqc.model import io
from lwqc.runtime.parts import Parts, divided
from lwqc.runtime.session import Outputs
from lwqc.runtime.stats.crossing import Crossing
from lwqc.runtime.stats.divergence import Divergence, OutputMeter
from lwqc.runtime.stats.segmented_run import SegmentedRun

Types = Mapping[str, str]
_OF_OUTPUTS = 8  # copies of one of two while they are compared, in double precision
_NAMES = {"float32": "float", "float64": "double"}  # of types, where onnxruntime has its own


def outputs_in_parts(model: ir.Model, parts: Parts, names: Collection[str]) -> Iterator[Outputs]:
    """Some outputs of a model, feed by feed."""
    crossing = Crossing(0)
    run = SegmentedRun(
        model, parts.segments, parts.data, parts.session, crossing=crossing, outputs=list(names)
    )
    return run.results()


def pairs_in_parts(work: Version, candidate: ir.Model) -> Iterator[tuple[Outputs, Outputs]]:
    """Outputs of the original and of a candidate that both have, feed by feed.

    Raises InputError where there are none, or a part of one of them has no room.
    """
    original = work.original.model
    names = _shared(original, candidate, work.incomparable)
    ours, theirs = divided_pair(work, candidate)
    before = outputs_in_parts(original, ours, names)
    after = outputs_in_parts(candidate, theirs, names)
    return zip(before, after, strict=True)


def divided_pair(work: Version, candidate: ir.Model) -> tuple[Parts, Parts]:
    """Parts of the original and of a candidate, with the same batches. Raises InputError."""
    original = work.original.model
    ours = _divided(work, original)
    theirs = _divided(work, candidate, ours.batch)
    while ours.batch != theirs.batch:  # batches that fit one model may be too large for the other
        ours = _divided(work, original, theirs.batch)
        theirs = _divided(work, candidate, ours.batch)
    return ours, theirs


def check_room(work: Version) -> None:
    """Raises InputError where the original's outputs cannot be compared with others."""
    _divided(work, work.original.model)


def _divided(work: Version, model: ir.Model, batch: int | None = None) -> Parts:
    room = work.job.room
    if room is None:
        raise ValueError("memory has no bound")
    half = replace(room, sharing=2)  # the last parts of both models are open at the same time
    return divided(model, work.job.data.fit, half, mapped=True, batch=batch, of_outputs=_OF_OUTPUTS)


def divergences_in_parts(work: Version, candidate: ir.Model) -> dict[str, Divergence]:
    """Full comparison with the original over all data. Raises InputError."""
    return OutputMeter().over(pairs_in_parts(work, candidate)).result()


def checked_in_parts(
    work: Version, saved: io.Draft, expect: Callable[[Outputs, Types], Expected]
) -> dict[str, Divergence]:
    """The same with a file that was written, which is first held to what it should be.

    expect: what the outputs have to be like, by those of the original for the first feeds, and
    their types. Raises UnsoundResult, see `lwqc.compile.saved_check`.
    """
    meter = OutputMeter()
    try:
        for number, (before, after) in enumerate(pairs_in_parts(work, io.load(saved.path))):
            if number == 0:
                compare_outputs(after, _types(after), expect(before, _types(before)), False)
            meter.add(before, after)
    except (SessionError, Unlike) as error:
        raise UnsoundResult(f"{saved.target}: was not saved: {error}") from error
    return meter.result()


def _types(outputs: Outputs) -> Types:
    """Types as sessions call them."""
    return {
        name: f"tensor({_NAMES.get(a.dtype.name, a.dtype.name)})" for name, a in outputs.items()
    }


def _shared(original: ir.Model, candidate: ir.Model, without: Collection[str]) -> list[str]:
    known = {v.name for v in candidate.graph.outputs} - set(without)
    names = [v.name or "" for v in original.graph.outputs]
    shared = [name for name in names if name in known]
    if not shared:
        others = [v.name for v in candidate.graph.outputs]
        raise InputError(f"the models share no output: {names} and {others}")
    return shared
