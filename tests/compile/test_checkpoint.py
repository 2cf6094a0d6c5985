"""A fit that was killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.compile import checkpoint  # noqa: E402
from lwqc.errors import InputError  # noqa: E402
from lwqc.model import io  # noqa: E402
from tests.compile.test_recover import coded, feeds, narrow, teacher  # noqa: E402


class Killed(BaseException):
    """In the middle of a fit."""


def killer(stage, share):
    """Progress that ends the fit when a stage has come so far."""

    def told(name, done, total):
        if name == stage and done >= share * total:
            raise Killed

    return told


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Nothing waits to be written."""
    monkeypatch.setattr(checkpoint, "_REST", 0)


MODELS = {
    "whole": (narrow, {"steps": 60, "lr": 0.02}, "fitting the whole", 0.55),
    "parts": (coded, {"steps": 40, "parts": "layers"}, "fitting each part", 0.7),
    "whole after parts": (coded, {"steps": 40, "parts": "layers"}, "fitting the whole", 0.55),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_killed_fit_goes_on_and_ends_with_the_same_bytes(name, tmp_path, monkeypatch):
    make, options, stage, share = MODELS[name]
    given = {"teacher": teacher(), "data": feeds(40), **options}
    expected = lwqc.recover(make(), **given)
    state = tmp_path / "state"
    with pytest.raises(Killed):
        lwqc.recover(make(), **given, checkpoint=state, progress=killer(stage, share))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    steps = []
    monkeypatch.setattr(torch.optim.Adam, "step", counted(torch.optim.Adam.step, steps))
    done = lwqc.recover(make(), **given, checkpoint=state, resume=True)
    assert io.to_bytes(done.model) == io.to_bytes(expected.model)
    assert done.report.loss_after == expected.report.loss_after
    assert done.report.steps == expected.report.steps
    behind = options["steps"] * (1 + 2 * (name != "whole"))  # of the whole, and of two layers
    assert 0 < len(steps) < 0.8 * behind, "it did not go on, but began anew"


def counted(step, steps):
    def call(self, *args, **kwargs):
        steps.append(1)
        return step(self, *args, **kwargs)

    return call


def test_a_fit_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    given = {"teacher": teacher(), "data": feeds(40), "steps": 40}
    first = lwqc.recover(narrow(), **given, checkpoint=tmp_path / "state")
    steps = []
    monkeypatch.setattr(torch.optim.Adam, "step", counted(torch.optim.Adam.step, steps))
    again = lwqc.recover(narrow(), **given, checkpoint=tmp_path / "state", resume=True)
    assert not steps
    assert io.to_bytes(first.model) == io.to_bytes(again.model)


OTHERS = {
    "data": {"data": feeds(40, seed=6)},
    "steps": {"steps": 41},
    "teacher": {"teacher": narrow()},
    "seed": {"seed": 3},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_fit_is_refused(name, tmp_path):
    given = {"teacher": teacher(), "data": feeds(40), "steps": 40, "checkpoint": tmp_path / "s"}
    lwqc.recover(narrow(), **given)
    with pytest.raises(InputError, match="other models, data or options: leave out --resume"):
        lwqc.recover(narrow(), **{**given, **OTHERS[name]}, resume=True)
    lwqc.recover(narrow(), **{**given, **OTHERS[name]})  # begins anew


def damaged(path, name, array):
    """The file with another array in one place; None for none."""
    with np.load(path) as file:
        arrays = dict(file)
    key = next(k for k in arrays if k.startswith(name))
    arrays.pop(key)
    if array is not None:
        arrays[key] = array
    with path.open("wb") as file:
        np.savez(file, **arrays)


DAMAGE = {
    "head gone": ("lwqc_recover", None, "is no state of a fit"),
    "head of other bytes": ("lwqc_recover", np.zeros(4, np.uint8), "is no state of a fit"),
    "numbers gone": ("whole/numbers", None, "is not of this fit"),
    "numbers are no JSON": ("whole/numbers", np.zeros(3, np.uint8), "is not of this fit"),
    "another shape": ("whole/best0", np.zeros((2, 2), np.float32), "is not of this fit"),
    "text": ("whole/exp_avg0", np.array("a"), "is not of this fit"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_an_error_in_one_line(name, tmp_path):
    where, array, reason = DAMAGE[name]
    path = tmp_path / "state"
    given = {"teacher": teacher(), "data": feeds(40), "steps": 40, "checkpoint": path}
    lwqc.recover(narrow(), **given)
    path.rename(tmp_path / "state.npz")
    damaged(tmp_path / "state.npz", where, array)
    (tmp_path / "state.npz").rename(path)
    with pytest.raises(InputError, match=reason) as caught:
        lwqc.recover(narrow(), **given, resume=True)
    assert "\n" not in str(caught.value)


def test_parts_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "state"
    given = {"teacher": teacher(), "data": feeds(40), "steps": 20, "parts": "layers"}
    progress = killer("fitting the whole", 0)
    with pytest.raises(Killed):
        lwqc.recover(coded(), **given, checkpoint=path, progress=progress)
    damaged(path, "part0/", np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match="is not of this fit"):
        lwqc.recover(coded(), **given, checkpoint=path, resume=True)


def test_resuming_takes_a_file(tmp_path):
    given = {"teacher": teacher(), "data": feeds(40), "checkpoint": tmp_path / "s", "resume": True}
    with pytest.raises(InputError, match="nothing to resume"):
        lwqc.recover(narrow(), **given)
    with pytest.raises(InputError, match="give checkpoint"):
        lwqc.recover(narrow(), teacher=teacher(), data=feeds(40), resume=True)


def test_the_command_keeps_its_state_beside_the_output_until_that_is_there(run, tmp_path):
    small, original, data = (tmp_path / n for n in ("s.onnx", "t.onnx", "d"))
    io.save(narrow(), small)
    io.save(teacher(), original)
    data.mkdir()
    for i, one in enumerate(feeds(24)):
        np.savez(data / f"{i:02}.npz", **one)
    out = tmp_path / "out.onnx"
    options = ["-o", out, "--teacher", original, "--data", data, "--steps", "20"]
    state = tmp_path / "out.onnx.recover"
    state.write_bytes(b"anything")
    for more in ([], ["--resume"]):
        code, _, told = run("recover", small, *options, *more)
        assert code == 2
        assert "out.onnx.recover" in told
        assert state.read_bytes() == b"anything"
    state.unlink()
    state.symlink_to(tmp_path / "nothing")
    code, _, told = run("recover", small, *options)
    assert code == 2
    assert "is a link" in told
    state.unlink()
    code, _, told = run("recover", small, *options)
    assert code == 0, told
    assert out.exists()
    assert not state.exists()
