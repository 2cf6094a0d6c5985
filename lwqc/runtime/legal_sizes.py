"""Sizes that a model runs with, where neither data nor the user says how large inputs are.

A file says that a size is dynamic, not which ones are legal: a detector with strides of 32 takes
no image of 16, a model of 25 ms of sound no other length. They are found by trying, in another
process.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from lwqc.errors import InputError, SessionError
from lwqc.graph.value_types import is_tensor
from lwqc.model.child_process import DeathError
from lwqc.model.limits import LimitError, limits
from lwqc.runtime.data import default_sizes, required_inputs
from lwqc.runtime.isolated import shared
from lwqc.runtime.loadable import Loadable, as_loadable
from lwqc.runtime.proof import allowed_bytes
from lwqc.runtime.random_inputs import random_feeds
from lwqc.runtime.session import SessionSettings, load_isolated

# What is tried for all sizes alike, the usual ones first, and what for two kinds of them.
_USUAL = (224, 320, 256, 128, 64, 32, 48, 96, 160, 192, 288, 384, 512, 576, 640, 768, 1024, 80, 112,
          *range(1, 16), 24, 40, 100, 200, 299, 400, 416, 480, 500, 600, 800, 1000, 1280, 1600,
          2048, 4096, 8000, 16000)  # fmt: skip
_PAIRED = (32, 48, 64, 80, 128, 224, 256, 320, 1, 2, 4, 8, 16, 100, 192, 288, 512, 576)
_BATCHES = (2, 4, 8)
_FEEDS = 2  # of each try, as both values of a flag need to run
_SECONDS = 30.0  # of trying, and of one run


def legal_sizes(model: ir.Model, asked: Mapping[str, int]) -> dict[str, int]:
    """Sizes by name of all dynamic dimensions, with which the model runs on random inputs.

    asked: sizes that are given; see `data.default_sizes` for names and what is tried first.
    Raises InputError where none are found.
    """
    inputs = required_inputs(model)
    first = default_sizes(inputs, asked)
    open_names = [name for name in first if name not in asked]
    if not open_names or not all(map(is_tensor, inputs.values())):
        return dict(asked)
    if any(v.shape is None for v in inputs.values()):
        return dict(asked)
    source = model.meta.get("lwqc_path")
    with as_loadable(source or model) as loadable:
        return _tried(model, loadable, first, open_names)


def _tried(
    model: ir.Model, source: Loadable, first: Mapping[str, int], names: Sequence[str]
) -> dict[str, int]:
    end = time.monotonic() + _SECONDS
    seconds = min(_SECONDS, limits().run)
    loaded, reason = False, ""
    for sizes in _candidates(model, first, names):
        try:
            for feeds in random_feeds(model.graph, _FEEDS, 0, sizes):
                if not loaded:  # or it died of the last run
                    most = allowed_bytes(model, feeds)
                    load_isolated(shared(), source, SessionSettings(), most)
                shared().run(feeds, keep=False, seconds=seconds)
                loaded = True
        except LimitError as error:
            reason = reason or str(error)
            continue
        except SessionError as error:
            reason = reason or str(error)
            if time.monotonic() > end or (isinstance(error, DeathError) and error.late):
                break
            loaded = shared().alive
            continue
        return sizes
    listed = ", ".join(names)
    raise InputError(f"no sizes of {listed} were found that run: give --data or --shape ({reason})")


def _candidates(
    model: ir.Model, first: Mapping[str, int], names: Sequence[str]
) -> Iterator[dict[str, int]]:
    """The defaults; all sizes alike; other batches; then pairs of sizes in turn."""
    leading = {n for n in names if first[n] == 1}
    rest = [n for n in names if n not in leading]
    yield dict(first)
    for size in _USUAL if rest else ():
        yield {**first, **dict.fromkeys(rest, size)}
    for size in _BATCHES if leading else ():
        yield {**first, **dict.fromkeys(leading, size)}
    if len(rest) > 1:
        for one, other in itertools.permutations(_PAIRED, 2):
            for name in rest:
                yield {**first, **dict.fromkeys(rest, other), name: one}
    if leading:
        for size in _USUAL:
            yield {**first, **dict.fromkeys(names, size)}
