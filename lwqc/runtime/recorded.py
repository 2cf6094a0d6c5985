"""Outputs of a session that are needed again: every candidate is compared with the same ones."""

from __future__ import annotations

import hashlib
import math
import pickle
from typing import Any

import numpy as np

from lwqc.runtime.session import Feeds, Outputs, Session

_LIMIT_BYTES = 256 << 20  # of outputs that are kept; beyond that the session runs again


class Recorded:
    """A session whose outputs are kept by what was fed, read only."""

    def __init__(self, session: Session, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.outputs = session.outputs
        self._session = session
        self._left: float = limit_bytes
        self._known: dict[bytes, Outputs] = {}

    def __call__(self, feeds: Feeds) -> Outputs:
        """As the session, which runs unless it ran on equal feeds before."""
        key = feeds_digest(feeds)
        if key in self._known:
            return dict(self._known[key])
        found = self._session(feeds)
        size = sum(_bytes(value) for value in found.values())
        if size <= self._left:
            self._left -= size
            self._known[key] = dict(found)
            for value in found.values():
                value.flags.writeable = False
        return found


def feeds_digest(feeds: Feeds) -> bytes:
    """Of names and arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(feeds.items()):
        digest.update(pickle.dumps((name, value), protocol=5))
    return digest.digest()


def _bytes(value: Any) -> float:
    """Of an array; of anything else it is not told, which keeps it from being held."""
    return value.nbytes if isinstance(value, np.ndarray) else math.inf
