"""What is said where temporary files have no room; real disks without room: `tests.disks`."""

from __future__ import annotations

import errno
import os
import tempfile

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.model.scratch import temporary_folder
from lwqc.runtime.profile import operator_times
from lwqc.runtime.session import Session
from lwqc.runtime.stats.crossing import Crossing
from tests.build import model

FULL = "temporary files cannot be written there: "


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder():
    with pytest.raises(InputError, match=f"{FULL}No space left"), temporary_folder():
        full()
    with pytest.raises(PermissionError), temporary_folder():
        raise PermissionError


def test_no_place_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=f"none: {FULL}No such file"), temporary_folder():
        pytest.fail("there is no such folder")


def test_activations(monkeypatch):
    crossing = Crossing(0)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=FULL):
        crossing.put("a", 0, np.zeros(9))


def test_a_profile_that_was_not_written_whole(tmp_path, monkeypatch):
    cut = tmp_path / "profile.json"
    cut.write_text('[{"cat": "No')
    monkeypatch.setattr(Session, "profile", lambda _: str(cut))
    built = model([("Relu", ["x"], "y", {})], {}, {"x": ["n"]}, ["y"])
    with pytest.raises(InputError, match=FULL):
        operator_times(built, {"x": np.ones(4, np.float32)})
