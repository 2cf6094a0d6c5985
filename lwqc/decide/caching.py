"""How a decoder is to store keys and values of earlier tokens."""

from __future__ import annotations

from typing import cast, get_args

from lwqc.backends.target import Target
from lwqc.errors import InputError
from lwqc.model.extensions import expected
from lwqc.plans.options import KvCache
from lwqc.runtime.data import Dataset


def checked_cache(asked: str | None, target: Target, data: Dataset) -> KvCache | None:
    """What was asked for. Raises InputError for what there is not, or not here."""
    if asked is None:
        return None
    if asked not in get_args(KvCache):
        raise InputError(f"--kv-cache {asked}: {expected(asked, get_args(KvCache))}")
    if not target.codes_caches:
        raise InputError(f"--kv-cache {asked}: target {target.name} is not known to run it")
    if not data.given:
        raise InputError(f"--kv-cache {asked} takes its ranges from data: give --data")
    return cast(KvCache, asked)
