"""A weight that another machine encodes: what comes back, and what is believed of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwqc.errors import InputError
from lwqc.passes.to_encode import Held, ToEncode, key_of
from lwqc.plans.plan import SiteEntry
from lwqc.quant.gram_matrix import inverse_factor
from lwqc.runtime.cluster import check_versions, versions
from lwqc.runtime.one_thread import one_thread
from lwqc.runtime.shared_folder import LaidArray, array_digest

_ARITHMETIC = "arithmetic"


class Damaged(Exception):
    """An answer that is not what a worker sent, or not an answer to what it was sent."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Codes from a worker.

    arrays: see `Held.arrays`. digest: of these and of what the worker had been sent. made_by: what
    `maker` gave there. worker: its address.
    """

    arrays: Mapping[str, NDArray[Any]]
    digest: str
    made_by: Mapping[str, str]
    worker: str


@dataclass(frozen=True)
class LaidWork:
    """`ToEncode` whose arrays lie in a folder that a worker sees."""

    weight: LaidArray
    entry: SiteEntry
    gram: LaidArray | None

    def opened(self) -> ToEncode:
        """With its arrays. Raises UnseenError."""
        gram = None if self.gram is None else self.gram.opened()
        return ToEncode(self.weight.opened(), self.entry, gram)


def encode_alone(work: ToEncode) -> Held:
    """The codes of a weight; the same bytes wherever `maker` gives the same."""
    with one_thread():
        return work.encode()


def answer(sent: ToEncode | LaidWork) -> Answer:
    """The same, on a worker. Raises InputError, and UnseenError where its arrays lie elsewhere."""
    from distributed import get_worker

    work, laid = (sent.opened(), sent) if isinstance(sent, LaidWork) else (sent, None)
    # In the order that they have when they are sent.
    arrays = {n: np.asarray(a, order="C") for n, a in encode_alone(work).arrays().items()}
    return Answer(arrays, _digest(task_key(work, laid), arrays), maker(), get_worker().address)


def check_maker(found: Answer, address: str) -> None:
    """Raises InputError for a worker that would give other codes than this machine."""
    who = f"worker {found.worker}"
    check_versions(address, who, found.made_by, versions())
    if found.made_by != maker():
        raise InputError(
            f"--cluster {address}: sums on {who} round otherwise than here, and some codes with "
            "them: use machines with processors of one kind, or set OPENBLAS_CORETYPE on all"
        )


def taken(found: Answer, key: str, shape: tuple[int, int], entry: SiteEntry) -> Held:
    """The codes in an answer.

    key: `task_key` of what was sent. shape: of the weight. Raises Damaged.
    """
    if _digest(key, found.arrays) != found.digest:
        raise Damaged("bytes of a weight or its codes were changed on the way")
    try:
        held = Held.of_arrays(found.arrays, entry.weight)
        decoded = held.encoded.decode()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Damaged(f"no codes of {entry.weight}: {type(error).__name__}: {error}") from error
    if decoded.shape != shape or not np.isfinite(decoded).all():
        raise Damaged(f"codes of {list(decoded.shape)} for a weight of {list(shape)}")
    return held


def task_key(work: ToEncode, laid: LaidWork | None = None) -> str:
    """Digest of all that the codes of a weight depend on, with the versions here.

    laid: of the same work: files that no others have the names of stand for their numbers.
    """
    if laid is not None:
        arrays = repr(laid)
    else:
        arrays = repr([array_digest(a) if a is not None else "" for a in (work.weight, work.gram)])
    told = (key_of("", work.entry), sorted(versions().items()), arrays)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _digest(key: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    told = [(name, array_digest(array)) for name, array in sorted(arrays.items())]
    return hashlib.sha256(repr((key, told)).encode()).hexdigest()


@cache
def maker() -> Mapping[str, str]:
    """What the bytes of codes depend on beside what is sent: versions, and how sums round here."""
    return {**versions(), _ARITHMETIC: _arithmetic()}


def _arithmetic() -> str:
    """Digest of sums whose last bits the kernels for a processor and its caches decide."""
    rows, inputs, outputs = 700, 520, 300
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs), np.float32)
    w = rng.standard_normal((inputs, outputs), np.float32)
    with one_thread():
        product = x @ w
        factor = inverse_factor((x.T @ x).astype(np.float64), 0.01)
        squared = factor @ factor.T
    sums = [(x * x).sum(axis=1), (x * x).sum(axis=0)]
    digests = [array_digest(a) for a in (product, factor, squared, *sums)]
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]
