"""The models between the passes that make a result."""

from __future__ import annotations

from dataclasses import replace

from lwqc.compile.compressed import Compressed
from lwqc.compile.execute import execute
from lwqc.compile.facts import Facts
from lwqc.passes.instruments import Dump
from lwqc.passes.pipeline import watching


def dump_steps(done: Compressed, dump: Dump) -> None:
    """Execute the plan of a result once more, with a file after each pass that changes something.

    Nothing that was found while the plan was chosen is used, so that every pass runs.
    """
    with watching(lambda: dump):
        execute(replace(done.work, facts=Facts()), done.goals, done.decisions)
