"""The inputs of one job: those that are fitted to, that judge and that are timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.plans.options import Sizes
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset
from lwqc.runtime.served import Served, served_inputs

_JUDGES = 4  # batches that candidates are compared on while searching


@dataclass(frozen=True, eq=False)
class JobData:
    """Inputs of one model.

    fit: rows that statistics and refits see, and that results are judged on in the end. model:
    whose inputs they are. shapes: sizes of dynamic dimensions that the model will serve; none:
    those of `fit`.
    """

    fit: Dataset
    model: ir.Model
    shapes: Sequence[Sizes] = ()

    @cached_property
    def judge(self) -> list[dict[str, NDArray[Any]]]:
        """The first few feeds, kept in memory, which candidates are compared on."""
        return list(counted(self.fit.limited(_JUDGES), "the data that is kept"))

    @cached_property
    def judge_is_all(self) -> bool:
        """Whether there is no more data than `judge`."""
        return len(list(self.fit.limited(_JUDGES + 1))) <= _JUDGES

    def behind_judge(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The data that is not in `judge`."""
        return islice(self.fit, _JUDGES, None)

    @cached_property
    def serve(self) -> tuple[Served, ...]:
        """Inputs that models are timed on, one for each shape that is served."""
        return served_inputs(self.model, self.shapes, self.fit)
