"""Why something was left as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Where nothing was done, and why, for readers.

    name: of what was left: a value, a node, a group, a branch. step: the pass that left it, ""
    where an analysis did.
    """

    name: str
    reason: str
    step: str = ""
