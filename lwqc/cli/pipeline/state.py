"""What the last run of a build did, in a small file in its folder.

A step is not run again only where this file, undamaged, says that it ran with the very same facts
and left the very same files. Nothing else in it decides anything, so that a state that is older,
of another build or edited costs time and is never wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lwqc.cli.pipeline.content import CONTENT, file_digest
from lwqc.errors import InputError

_FORMAT = "lwqc run"
_HEAD = f'{{\n "format": "{_FORMAT}"'  # how every state file begins, whatever became of the rest
_VERSION = 1


class Record(BaseModel):
    """One step that ran.

    facts: what it depended on. outputs: path -> sha256. answer: its report, as JSON holds it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    facts: dict[str, str]
    outputs: dict[str, str]
    exit_code: int
    answer: Any = None


class State(BaseModel):
    """Records of steps by name. damage: why those of the last run count for nothing, or ""."""

    model_config = ConfigDict(extra="forbid")

    steps: dict[str, Record] = Field(default_factory=dict)
    damage: str = ""

    @property
    def text(self) -> str:
        """The file's content."""
        steps = {name: record.model_dump() for name, record in self.steps.items()}
        head = {"format": _FORMAT, "version": _VERSION, "digest": _digest(steps)}
        return json.dumps({**head, "steps": steps}, indent=1) + "\n"


def read_state(path: Path) -> State:
    """The state of the last run; without records where there is none, or it is damaged.

    Raises InputError for a file that is not a state of `lwqc run`: it is not to be overwritten.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if content and not content.startswith(_HEAD.encode()):
        raise InputError(f"{path}: is no state of lwqc run; move it, or choose another folder")
    try:
        table = json.loads(content)
        steps = table["steps"]
        if table["version"] != _VERSION:
            return State(damage=f"{path} is of another version of lwqc")
        if table["digest"] != _digest(steps):
            return State(damage=f"{path} is damaged")
        return State(steps=steps)
    except (ValueError, KeyError, TypeError, ValidationError):
        return State(damage=f"{path} is damaged")


def why_again(record: Record | None, facts: Mapping[str, str], damage: str = "") -> list[str]:
    """Reasons to run a step, a sentence each; none where its files are what they would become."""
    if record is None:
        return [damage or "it has not run yet"]
    found = [_change(n, facts.get(n), record.facts.get(n)) for n in {**record.facts, **facts}]
    return [reason for reason in found if reason] + [
        reason for path, digest in record.outputs.items() if (reason := _touched(path, digest))
    ]


def _change(name: str, now: str | None, before: str | None) -> str:
    if now == before:
        return ""
    if name.startswith(CONTENT):
        path = name.removeprefix(CONTENT)
        return f"{path} changed" if now and before else f"{path} is {'new' if now else 'gone'}"
    if before is None:
        return f"{name} is now {now}"
    return f"{name} is now {now}, was {before}" if now is not None else f"{name} is gone"


def _touched(path: str, digest: str) -> str:
    if not Path(path).exists():
        return f"{path} is missing"
    return "" if file_digest(Path(path)) == digest else f"{path} is not as it was left"


def _digest(steps: Any) -> str:
    return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()
