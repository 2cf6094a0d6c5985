"""What a candidate's cost is predicted from, beside the bytes of the file."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from lwqc.decide.search.pace import Parts


class Predicted(ABC):
    """One cost, such as milliseconds: what each stored tensor and each node adds to its parts.

    pace: what each part counts, above 0, as far as is known before anything is measured. columns:
    numbers that tensors and nodes give.
    """

    pace: Parts
    columns: int = 1

    @abstractmethod
    def of_stored(self, number: int, level: int, share: float) -> tuple[float, ...]:
        """Of the stored tensor of that number. share: of its elements that are left."""

    @abstractmethod
    def of_written(self, number: int, share: float, narrow: bool) -> tuple[float, ...]:
        """Of what the node of that number writes. narrow: in bytes rather than floats."""

    def shorter(
        self, rows: NDArray[np.float64], left: NDArray[np.float64], level: int
    ) -> NDArray[np.float64]:
        """Rows where the model goes on with fewer tokens; by default as they are.

        left: share of the work of each [rows, 1]. level: of the tokens.
        """
        return rows

    def parts(self, rows: NDArray[np.float64], tensors: int) -> Parts:
        """Parts of the cost, of rows [tensors and then nodes, columns]."""
        return np.asarray(rows.sum(0))
