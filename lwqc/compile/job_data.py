"""The inputs of one job: those that are fitted to, that judge and that are timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.plans.options import Sizes
from lwqc.runtime.counted import counted
from lwqc.runtime.data import Dataset, open_data
from lwqc.runtime.rebatched import HELD_BACK, LEAST_FEEDS, in_pieces
from lwqc.runtime.served import Served, served_inputs

_JUDGES = 4  # batches that candidates are compared on while searching


@dataclass(frozen=True, eq=False)
class JobData:
    """Inputs of one model.

    fit: rows that statistics and refits see, and that results are judged on in the end. model:
    whose inputs they are. shapes: sizes of dynamic dimensions that the model will serve; none:
    those of `fit`. held_back: inputs that are not in `fit`, and judge in place of those that are.
    """

    fit: Dataset
    model: ir.Model
    shapes: Sequence[Sizes] = ()
    held_back: Sequence[Mapping[str, NDArray[Any]]] = ()

    @cached_property
    def judge(self) -> list[dict[str, NDArray[Any]]]:
        """The first few feeds, kept in memory, which candidates are compared on."""
        judges = self.held_back or self.fit.limited(_JUDGES)
        return [dict(feeds) for feeds in counted(judges, "the data that is kept")]

    @cached_property
    def judge_is_all(self) -> bool:
        """Whether there is no more data than `judge`."""
        return bool(self.held_back) or len(list(self.fit.limited(_JUDGES + 1))) <= _JUDGES

    def behind_judge(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The data that is not in `judge`."""
        return iter(()) if self.held_back else islice(self.fit, _JUDGES, None)

    @cached_property
    def serve(self) -> tuple[Served, ...]:
        """Inputs that models are timed on, one for each shape that is served."""
        return served_inputs(self.model, self.shapes, self.fit)

    def apart(self) -> JobData | None:
        """One of five sets of inputs held back; None where there are too few.

        Batches are taken apart where there are few of them and the model allows it.
        """
        pieces = in_pieces(list(counted(self.fit, "the data that is kept")), self.model)
        if len(pieces) < LEAST_FEEDS:
            return None
        held = pieces[HELD_BACK - 1 :: HELD_BACK]
        fitted = [p for i, p in enumerate(pieces) if i % HELD_BACK != HELD_BACK - 1]
        fit = replace(open_data(fitted, self.model), description=self.fit.description)
        return JobData(fit, self.model, self.shapes, held)
