"""A model that was fitted to another one, and the report on that."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lwqc.compile.saved_check import Expected, check_saved
from lwqc.model import io
from lwqc.model.outputs import check_outputs
from lwqc.model.told import Told
from lwqc.passes.widen_bfloat16 import has_bfloat16
from lwqc.runtime.session import SessionSettings


@dataclass(frozen=True, repr=False)
class RecoverReport(Told):
    """What a fit did.

    fitted, held_back: numbers of feeds. steps: of the whole. parts: how many parts were fitted one
    by one before, each in as many steps at most. loss_before, loss_after: distance from the
    teacher, or what `loss` says, on the feeds that were held back (all, where none was), as torch
    computes it.
    drop_before, drop_after: `Divergence.drop` from the teacher on them, as onnxruntime does.
    unchanged: why the model is as it was, or "". trained: how many numbers were fitted.
    """

    source: str
    teacher: str
    data: str
    fitted: int
    held_back: int
    steps: int
    parts: int
    seconds: float
    trained: int
    loss_before: float
    loss_after: float
    drop_before: float
    drop_after: float
    unchanged: str = ""
    notes: tuple[str, ...] = ()
    output: str = ""
    output_bytes: int = 0

    def told(self) -> dict[str, str]:
        """Losses before and after."""
        return {
            "model": " -> ".join(filter(None, (self.source, self.output))),
            "teacher": self.teacher,
            "loss": f"{self.loss_before:.4g} -> {self.loss_after:.4g}",
            "drop": f"{self.drop_before:.4g} -> {self.drop_after:.4g}",
            "unchanged": self.unchanged,
            "data": self.data,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: null for what is no number."""
        told = {**asdict(self), "notes": list(self.notes)}
        return {n: None if _no_number(value) else value for n, value in told.items()}


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@dataclass(frozen=True, eq=False, repr=False)
class Recovered(Told):
    """A fitted model. read: files that it was made of, which no result takes the place of."""

    model: ir.Model
    report: RecoverReport
    expected: Expected
    read: Sequence[Path]

    def told(self) -> dict[str, str]:
        """Of its report."""
        return self.report.told()

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        verify: bool = True,
    ) -> RecoverReport:
        """Write the model, check what was written in another process, put it in its place.

        Raises InputError when it cannot be written, UnsoundResult when it does not hold; nothing
        is left then, and what was there stays.
        """
        with self.drafted(path, external_data=external_data, verify=verify) as (draft, report):
            draft.publish()
            return report

    @contextmanager
    def drafted(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        verify: bool = True,
    ) -> Iterator[tuple[io.Draft, RecoverReport]]:
        """The same, but for the last step: the draft is still to be published."""
        check_outputs([Path(path)], list(self.read))
        with io.drafted(self.model, path, external_data=external_data) as draft:
            if verify:
                brain = has_bfloat16(self.model)
                label = str(draft.target)
                check_saved(draft.path, self.expected, SessionSettings(), label, brain=brain)
            output, size = str(draft.target), draft.size_bytes
            yield draft, replace(self.report, output=output, output_bytes=size)
