"""Activations that outlive a process: a run goes on behind the last commit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lwqc.errors import InputError
from lwqc.runtime.stats.kept_crossing import KeptCrossing


def test_a_run_goes_on_behind_the_last_commit(tmp_path):
    folder = tmp_path / "run"
    first = KeptCrossing(folder)
    assert (first.position, first.feeds) == (0, 0)
    for feed in range(2):
        first.put("a", feed, np.full(3, feed))
    first.commit(1, 2)
    first.put("b", 0, np.zeros(5))  # the next segment is half done
    first.drop("a", 0)
    assert first.get("a", 0) is None

    again = KeptCrossing(folder)
    assert (again.position, again.feeds) == (1, 2)
    assert again.get("b", 0) is None
    for feed in range(2):
        np.testing.assert_array_equal(again.get("a", feed), np.full(3, feed))
        again.put("b", feed, np.full(4, 9))
        again.drop("a", feed)
    again.commit(2, 2)
    assert len(list(folder.glob("*.npy"))) == 2
    np.testing.assert_array_equal(KeptCrossing(folder).get("b", 1), np.full(4, 9))


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(p.read_bytes()[:9]), Path.unlink])
def test_what_is_damaged_is_told(tmp_path, harm):
    folder = tmp_path / "out.onnx.parts" / "run"
    folder.parent.mkdir()
    crossing = KeptCrossing(folder)
    crossing.put("a", 0, np.arange(5))
    crossing.commit(1, 1)
    harm(next(folder.glob("*.npy")))
    with pytest.raises(InputError, match=r"is damaged: remove .*out\.onnx\.parts"):
        KeptCrossing(folder).get("a", 0)


def test_texts_are_not_kept(tmp_path):
    crossing = KeptCrossing(tmp_path / "run")
    crossing.put("t", 0, np.array(["x"], object))
    crossing.commit(1, 1)
    assert KeptCrossing(tmp_path / "run").position == 0


@pytest.mark.parametrize("file", ["../mine.npy", "1-1.txt", 7])
def test_only_files_of_our_own_are_touched(tmp_path, file):
    folder = tmp_path / "run"
    KeptCrossing(folder)
    (tmp_path / "mine.npy").write_bytes(b"x")
    (folder / "run.json").write_text(json.dumps({"position": 1, "files": [["a", 0, file]]}))
    with pytest.raises(InputError, match="is damaged: remove"):
        KeptCrossing(folder)
    assert (tmp_path / "mine.npy").exists()
