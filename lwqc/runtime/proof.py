"""Models of strangers run in another process before any session is built in this one.

A file can end the process that loads or runs it, take all memory, or never end. What is made of a
model has the same operators, so one run of the model itself tells.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import onnx_ir as ir

from lwqc.errors import InputError, SessionError
from lwqc.model import io
from lwqc.model.child_process import DeathError
from lwqc.model.coded_caches import caches_of
from lwqc.model.limits import limits
from lwqc.runtime.isolated import shared
from lwqc.runtime.loadable import Loadable, as_loadable

Feeds = Mapping[str, Any]
_CPU = "CPUExecutionProvider"
_ONCE = {"session.intra_op.allow_spinning": "0"}  # threads need not be ready for the next run
# Kernels pack weights into copies; without, those of data files stay there until they are read.
_MAPPED = {**_ONCE, "session.disable_prepacking": "1"}
_LARGE_BYTES = 64 << 20  # of a model that does not stay loaded in the other process
_PER_THREAD = 16 << 20
_OF_MODEL, _OF_INPUTS = 16, 4  # how many times their bytes a run may take
_META = "lwqc_unproven"  # of a model that waits: what makes its inputs, and its name
_waiting: WeakSet[ir.Model] = WeakSet()
_refused: WeakKeyDictionary[ir.Model, str] = WeakKeyDictionary()  # and why


def prove_first(model: ir.Model, feeds: Callable[[], Feeds], label: str) -> None:
    """Before the next session is built, run a model in another process, if it still lives then.

    feeds: makes the inputs. Other work begins, so that what was refused before stops nothing.
    """
    _refused.clear()
    model.meta[_META] = (feeds, label)  # there, as what makes inputs may hold the model itself
    _waiting.add(model)


def prove_waiting() -> None:
    """Run the models that wait for it. Raises SessionError, see `prove`, then and from then on."""
    _prove_all()
    if _refused:
        gc.collect()  # what nobody works on any more stops nothing
    for reason in _refused.values():
        raise SessionError(reason)


def _prove_all() -> None:
    for model in list(_waiting):
        if model not in _waiting:  # making the feeds of another one built a session
            continue
        _waiting.discard(model)
        make, label = model.meta.pop(_META)
        try:
            feeds = make()
        except InputError:  # which those who work on it meet too; it may be nobody any more
            continue
        try:
            prove(model, feeds, label)
        except SessionError as error:
            _refused[model] = str(error)


def prove(model: ir.Model, feeds: Feeds, label: str) -> None:
    """Run a model in another process.

    Raises SessionError if the process dies of it, or if it takes more time or memory than
    `Limits` allow. What merely does not load or run is left to the session, which says why.
    """
    feeds = caches_of(model.metadata_props).coded(feeds)
    process, most = shared(), allowed_bytes(model, feeds)
    try:
        with as_loadable(original(model)) as source:
            process.load(
                source,
                optimize=True,
                flags={},
                entries=_MAPPED if io.weight_bytes(model) > _LARGE_BYTES else _ONCE,
                providers=[_CPU],
                most_bytes=most,
            )
            process.run(feeds, keep=False, seconds=limits().run)
    except DeathError as error:
        raise SessionError(
            f"{label}: ONNX Runtime does not survive it: {error} (lwqc --limit run=600s COMMAND "
            "allows more time)"
        ) from error
    except SessionError as error:
        if "alloc" in str(error):
            raise SessionError(
                f"{label}: it takes more than {most / 1e9:.3g} GB: {error} (lwqc --limit "
                "memory=16GB COMMAND allows more)"
            ) from error
    finally:
        if process.alive and io.weight_bytes(model) > _LARGE_BYTES:
            process.forget()


def allowed_bytes(model: ir.Model, feeds: Feeds) -> int:
    """Memory that a run of a model may take in its process."""
    given = sum(int(getattr(value, "nbytes", 0)) for value in feeds.values())
    own = _OF_MODEL * io.weight_bytes(model) + _OF_INPUTS * given
    return int(limits().memory) + own + _PER_THREAD * (os.cpu_count() or 1)


def original(model: ir.Model) -> Loadable:
    """A model as a session can load it: its file, or itself where it has none."""
    path = model.meta.get("lwqc_path")
    return path if path and os.path.exists(path) else model
