"""Archives of arrays that are not what they say, and files that are none."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.lib import format as npy

from lwqc.errors import InputError
from lwqc.model.array_files import Archive, read_npy
from lwqc.model.limits import Limits, limits, set_limits
from lwqc.runtime.data import open_data

MODEL = ir.from_onnx_text(
    """<ir_version: 9, opset_import: ["": 20]>
    net (float[n,4] x, float[n] z) => (float[n,4] y) { y = Relu(x) }"""
)


@pytest.fixture
def limited():
    before = limits()
    yield lambda **changed: set_limits(Limits(**changed))
    set_limits(before)


def member(shape=(2, 4), dtype="<f4", data=b"\0" * 32) -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def archive(folder: Path, **members: bytes) -> Path:
    path = folder / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


BAD = {
    "shape larger than the data": (member(shape=(2**40, 4)), "its shape needs"),
    "shape smaller than the data": (member(shape=(1, 4)), "its shape needs"),
    "negative shape": (member(shape=(-2, -4)), "has the shape"),
    "objects": (member(dtype="|O"), "objects, which are not loaded"),
    "no header": (b"nothing", "cannot be read as numpy data"),
    "nothing at all": (b"", "cannot be read as numpy data"),
    "code for a type": (member().replace(b"'<f4'", b"f(x) "), "cannot be read as numpy data"),
    "cut short": (member()[:-1], "its shape needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_an_array_says_is_compared_with_its_bytes(tmp_path, name):
    content, words = BAD[name]
    with pytest.raises(InputError, match=words) as caught:
        Archive(archive(tmp_path, x=content))
    assert "\n" not in str(caught.value)


def test_a_member_that_is_no_array(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", member())
        file.writestr("x.txt", "words")
    with pytest.raises(InputError, match=r"'x.txt' is not a numpy array"):
        Archive(path)


def test_two_arrays_of_one_name(tmp_path):
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", member())
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", member())
    with pytest.raises(InputError, match="two arrays of one name"):
        Archive(path)


def test_names_are_checked_before_anything_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "read_array", None)
    path = archive(tmp_path, x=member(), w=member())
    with pytest.raises(InputError, match="no data for input z"):
        open_data(path, MODEL)


def test_what_unpacks_to_more_than_is_allowed(tmp_path, limited):
    path = archive(tmp_path, x=member(shape=(1 << 20, 4), data=b"\0" * (16 << 20)))
    limited(data=1e6)
    with pytest.raises(InputError, match=r"allowed are 1 MB: .*lwqc --limit data=16\.8MB COMMAND"):
        Archive(path)
    limited(data=20e6)
    assert Archive(path).arrays()["x"].nbytes == 16 << 20


def test_what_is_not_packed_is_as_large_as_its_file(tmp_path, limited):
    limited(data=1.0)
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4), np.float32))
    assert Archive(tmp_path / "d.npz").names == ["x"]


@pytest.mark.parametrize("name", ["d.npz", "d.npy"])
def test_pipes_and_devices_are_no_data(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is not a regular file"):
        open_data(tmp_path / name, MODEL)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is not a regular file"):
        open_data(tmp_path / name, MODEL)


def test_a_pipe_in_a_folder_of_data(tmp_path):
    os.mkfifo(tmp_path / "1.npz")
    with pytest.raises(InputError, match=r"1\.npz: is not a regular file"):
        open_data(tmp_path, MODEL)


def test_an_archive_under_the_name_of_an_array(tmp_path):
    archive(tmp_path, x=member()).rename(tmp_path / "d.npy")
    with pytest.raises(InputError, match=r"call it \.npz"):
        read_npy(tmp_path / "d.npy")
