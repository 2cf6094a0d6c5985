"""Quantized weights on demand: computed while saving, shared between candidates, bounded memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.graph.sites import sites_by_name
from lwqc.model.tensor_bytes import StoredMatrix, read_array
from lwqc.model.weights import ReadArray
from lwqc.passes.to_encode import Held, Key, ToEncode, key_of
from lwqc.plans.plan import SiteEntry
from lwqc.quant.formats import WeightFormat
from lwqc.quant.grid import Encoded
from lwqc.quant.methods import DATA_METHODS
from lwqc.quant.range_search import encode
from lwqc.quant.side import Side


class PartOfSite(ir.LazyTensor):
    """A stored part of one site's weight in low bits, evaluated when it is read.

    site: its name. codes: whether this is the codes rather than scales or what is beside them.
    entropy: of these, in bits per weight, see `EncodedWeights.entropy`.
    """

    def __init__(
        self,
        site: str,
        make: Callable[[], NDArray[np.generic]],
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        *,
        codes: bool = False,
        entropy: Callable[[], float] = lambda: math.nan,
    ) -> None:
        super().__init__(
            lambda: ir.tensor(np.ascontiguousarray(make()), name=name),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        self.site, self.codes, self.entropy = site, codes, entropy


class Known(Protocol):
    """Weights that are encoded already."""

    def get(self, site: str, /) -> Encoded | None:
        """The codes of a site, None where it has none."""


Part = Callable[[Encoded], NDArray[np.generic]]
SidePart = Callable[[Side], NDArray[np.generic]]
Grams = Callable[[str], NDArray[np.float64] | None]


class Store(Protocol):
    """What outlives this process of weights that took long to encode."""

    def has(self, key: Key, /) -> bool:
        """Whether a site's codes are there."""

    def get(self, key: Key, fmt: WeightFormat, /) -> Held | None:
        """A site's codes, if they are there."""

    def put(self, key: Key, held: Held, /) -> None:
        """Keep a site's codes."""


class EncodedWeights:
    """A cache of encoded weights with a byte budget; safe to use from several threads.

    A tensor made by `lazy` holds no data: its site is encoded when the model is saved or loaded
    into a session, once for all of its parts as long as they are asked for near one another.
    """

    def __init__(
        self,
        model: ir.Model,
        read: ReadArray,
        budget_bytes: int = 64 << 20,
        grams: Grams = lambda site: None,
        known: Known = MappingProxyType({}),
        progress: Callable[[int, int], None] = lambda done, total: None,
        make: Callable[[ToEncode], Held] = ToEncode.encode,
    ) -> None:
        """grams: site -> mean of x xᵀ of its input, for the methods that look at the data.

        known: weights that are encoded already, by site; used where entries have their format.

        progress: called with sites encoded and sites that `lazy` was asked for.

        make: encodes one weight.
        """
        # A copy of the graph (weights are shared), since passes take the original's apart.
        self._sites = sites_by_name(model.clone())
        self._read = read
        self._budget = budget_bytes
        self._grams = grams
        self._known = known
        self._progress = progress
        self._make = make
        self._asked: set[str] = set()
        self._done: set[str] = set()
        self._entropy: dict[Key, float] = {}
        self._cache: OrderedDict[Key, Held] = OrderedDict()
        self._store: Store | None = None
        self._lock = threading.Lock()  # one weight at a time; encoding itself uses all cores

    def keep_in(self, store: Store | None) -> None:
        """From now on take what is in a store, and put there what takes long to encode."""
        self._store = store

    def ensure(self, site: str, entry: SiteEntry) -> None:
        """Encode a site unless it is in the store."""
        if self._store is None or not self._store.has(key_of(site, entry)):
            self._held(site, entry)

    def lacks(self, site: str, entry: SiteEntry) -> bool:
        """Whether a site takes long to encode, and its codes are neither at hand nor in the store.

        Codes that the model had already are at hand.
        """
        key, known = key_of(site, entry), self._known.get(site)
        if not entry.takes_long or (known is not None and known.format == entry.weight):
            return False
        return key not in self._cache and (self._store is None or not self._store.has(key))

    def to_encode(self, site: str, entry: SiteEntry) -> ToEncode:
        """A site's weight with all that its codes depend on. Raises InputError."""
        gram = self._grams(site) if entry.method in DATA_METHODS else None
        weight = self.weight(site)
        if not (
            weight.flags.c_contiguous or weight.flags.f_contiguous
        ):  # as another process has it
            weight = np.ascontiguousarray(weight)
        return ToEncode(weight, entry, gram)

    def keep(self, site: str, entry: SiteEntry, held: Held) -> None:
        """Take codes that were made elsewhere; they go to the store, which there has to be."""
        if self._store is None:
            raise ValueError("there is no store for codes")
        self._store.put(key_of(site, entry), held)
        self._count(site)

    def weight(self, site: str) -> NDArray[np.floating]:
        """The site's float weight [N, K]."""
        return self._sites[site].matrix(self._read)

    def steps_of(self, site: str) -> int:
        """What encoding by a Gram matrix takes, in proportion: K³ for its factor, and N K²."""
        one = self._sites[site]
        return one.k**3 * one.groups + one.size * one.k

    def get(self, site: str, entry: SiteEntry) -> Encoded:
        """The site's weight in the entry's format. Raises InputError naming the weight."""
        return self._held(site, entry).encoded

    def side(self, site: str, entry: SiteEntry) -> Side:
        """The factors of the entry's branch in float. Raises InputError naming the weight."""
        side = self._held(site, entry).side
        if side is None:
            raise InputError(f"{site}: its entry has no side branch")
        return side

    def _held(self, site: str, entry: SiteEntry) -> Held:
        key = key_of(site, entry)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = self._stored(site, entry)
                self._count(site)
                self._trim()
            self._cache.move_to_end(key)
            return self._cache[key]

    def _count(self, site: str) -> None:
        self._done.add(site)
        self._progress(len(self._done), len(self._asked | self._done))

    def _stored(self, site: str, entry: SiteEntry) -> Held:
        if self._store is None or not entry.takes_long:
            return self._encode(site, entry)
        key = key_of(site, entry)
        held = self._store.get(key, entry.weight)
        if held is None:
            held = self._encode(site, entry)
            self._store.put(key, held)
        return held

    def _encode(self, site: str, entry: SiteEntry) -> Held:
        fmt = entry.weight
        known = self._known.get(site)
        if known is not None and known.format == fmt:
            if entry.has_side:
                raise InputError(f"{site}: its codes are given, which leaves no side branch")
            return Held(known)
        try:
            if not entry.has_side and (rows := self._in_file(site, entry)) is not None:
                return Held(encode(rows, fmt, search=entry.search))
            return self._make(self.to_encode(site, entry))
        except InputError as error:
            raise InputError(f"{site}: {error}") from error

    def _in_file(self, site: str, entry: SiteEntry) -> StoredMatrix | None:
        """A large weight that is rounded where it lies, row by row, not loaded before."""
        by_rows = entry.method == "rtn" and entry.weight.kind not in ("fp16", "vq")
        return self._sites[site].stored_rows() if by_rows and self._read is read_array else None

    def lazy(
        self,
        site: str,
        entry: SiteEntry,
        part: Part,
        *,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        codes: bool = False,
    ) -> PartOfSite:
        """A tensor of the given type and shape whose values are `part` of the encoded weight.

        codes: whether that part is the codes.
        """
        self._asked.add(site)
        make = partial(self._part, site, entry, part, codes)
        entropy = partial(self.entropy, site, entry)
        return PartOfSite(site, make, name, dtype, shape, codes=codes, entropy=entropy)

    def _part(self, site: str, entry: SiteEntry, part: Part, codes: bool) -> NDArray[np.generic]:
        encoded = self.get(site, entry)
        if codes and entry.weight.only_stored:
            self._entropy[key_of(site, entry)] = encoded.entropy
        return part(encoded)

    def entropy(self, site: str, entry: SiteEntry) -> float:
        """Bits per weight that the best code without memory takes for a site's codes.

        Those of formats that are only stored are known since they were written.
        """
        known = self._entropy.get(key_of(site, entry))
        return self.get(site, entry).entropy if known is None else known

    def lazy_side(
        self,
        site: str,
        entry: SiteEntry,
        part: SidePart,
        *,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
    ) -> PartOfSite:
        """The same for a part of the entry's branch in float."""
        return PartOfSite(site, lambda: part(self.side(site, entry)), name, dtype, shape)

    def _trim(self) -> None:
        held = sum(e.nbytes for e in self._cache.values())
        while held > self._budget and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            held -= oldest.nbytes


def stored_parts(model: ir.Model) -> Iterator[tuple[ir.Value, PartOfSite]]:
    """Initializers of all graphs that hold a part of a site's weight."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, PartOfSite):
                yield value, value.const_value
