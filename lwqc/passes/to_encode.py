"""One weight becomes codes: a pure function of its numbers, statistics and entry in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded
from lwqc.quant.methods import encode_by
from lwqc.quant.side import Side, encode_with_side

Key = tuple[str, str, bool, str, int, int]


def key_of(site: str, entry: SiteEntry) -> Key:
    """What of a plan the codes of a site depend on, with its name."""
    return site, str(entry.weight), entry.search, entry.method, entry.rank, entry.columns


@dataclass(frozen=True)
class Held:
    """A weight in low bits, and what is in float beside it."""

    encoded: Encoded
    side: Side | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        beside = self.side.nbytes if self.side is not None else 0
        return self.encoded.codes.nbytes + self.encoded.scale.nbytes + beside

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it but the format, by name, for a file or another machine."""
        own, side = self.encoded, self.side
        found: dict[str, NDArray[Any]] = {"codes": own.codes, "scale": own.scale, "zero": own.zero}
        found["k"] = np.array(own.k)
        found |= {"books": own.books} if own.books is not None else {}
        found |= {"channel": own.channel} if own.channel is not None else {}
        if side is not None:
            found |= {"columns": side.columns, "down": side.down, "up": side.up}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], fmt: WeightFormat) -> Self:
        """What `arrays` gave. Raises KeyError or TypeError where it is something else."""
        side = Side(arrays["columns"], arrays["down"], arrays["up"]) if "up" in arrays else None
        encoded = Encoded(
            fmt,
            arrays["codes"],
            arrays["scale"],
            arrays["zero"],
            int(arrays["k"]),
            books=arrays.get("books"),
            channel=arrays.get("channel"),
        )
        return cls(encoded, side)


@dataclass(frozen=True, eq=False)
class ToEncode:
    """A weight [N, K] with all that its codes depend on.

    gram: mean of x xᵀ of its inputs, [convolution groups, K, K]; None where the entry's method
    looks at no data, or there is none.
    """

    weight: NDArray[np.floating]
    entry: SiteEntry
    gram: NDArray[np.float64] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.weight.nbytes + (0 if self.gram is None else self.gram.nbytes)

    def encode(self) -> Held:
        """The codes. Raises InputError."""
        entry, gram = self.entry, self.gram
        if not entry.has_side:
            made = encode_by(entry.method, self.weight, entry.weight, gram, search=entry.search)
            return Held(made)
        encoded, side = encode_with_side(
            entry.method,
            self.weight,
            entry.weight,
            None if gram is None else gram[0],
            rank=entry.rank,
            columns=entry.columns,
            search=entry.search,
        )
        return Held(encoded, side)
