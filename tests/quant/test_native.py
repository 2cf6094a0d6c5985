"""The compiled kernel gives numpy's bytes; a weight in a file gives those of one in memory."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.model.tensor_bytes import StoredMatrix
from lwqc.quant import native
from lwqc.quant.formats import WeightFormat
from lwqc.quant.range_search import encode
from tests.build import normal

BUILD = Path(__file__).parents[2] / "hatch_build.py"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("tree")
    (folder / "lwqc" / "quant").mkdir(parents=True)
    shutil.copy(BUILD, folder)
    shutil.copy(Path(native.__file__).with_name("blocks.c"), folder / "lwqc" / "quant")
    subprocess.run([sys.executable, folder / BUILD.name], check=True)
    return native.opened(folder / "lwqc" / "quant" / native.LIBRARY.name)


def same(a, b):
    pairs = ((a.codes, b.codes), (a.scale, b.scale), (a.zero, b.zero))
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize(
    "text", ["w4b32", "w4b16ah", "w2b64a", "w3b32ph", "w8b128", "w8c", "w7c", "w4c", "nf4b64"]
)
@pytest.mark.parametrize(("n", "k"), [(150, 100), (3, 1029), (65, 16), (1, 40)])
def test_the_kernel_gives_the_bytes_of_numpy(text, n, k, library, monkeypatch):
    weight = normal(n, k) * np.exp(3 * normal(n, 1, seed=1))
    weight[:, ::7] = 0
    weight[0, :5] = [1e-42, -1e29, 0, -0.0, 1e-3]  # all but these become 0
    fmt = WeightFormat.parse(text)
    if fmt.scale == "float16":
        weight[0, 1] = 0
    monkeypatch.setattr(native, "_library", lambda: None)
    plain = [encode(weight, fmt, search=search) for search in (True, False)]
    used = []
    monkeypatch.setattr(native, "_library", lambda: used.append(text) or library)
    assert all(
        same(a, encode(weight, fmt, search=s)) for a, s in zip(plain, (True, False), strict=True)
    )
    assert used


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_in_a_file_is_encoded_like_one_in_memory(transposed, tmp_path, monkeypatch):
    weight, path = normal(300, 96), tmp_path / "w.data"
    stored = np.ascontiguousarray(weight.T if transposed else weight)
    path.write_bytes(b"before" + stored.tobytes())
    tensor = ir.ExternalTensor(
        path.name, 6, stored.nbytes, ir.DataType.FLOAT, shape=ir.Shape(stored.shape), name="w",
        base_dir=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr("lwqc.quant.tiles._TILE", 1000)
    for cores in (1, 3):
        monkeypatch.setattr("lwqc.quant.tiles.usable_cores", lambda cores=cores: cores)
        rows = StoredMatrix(tensor, transposed)
        assert same(encode(weight, WeightFormat(4, 32)), encode(rows, WeightFormat(4, 32)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="tensor w: the file was cut short"):
        encode(rows, WeightFormat(4, 32))
    path.unlink()
    with pytest.raises(InputError, match="tensor w: cannot be read: No such file"):
        encode(rows, WeightFormat(4, 32))


def test_a_wheel_with_the_kernel_is_for_one_system(tmp_path):
    """It is compiled where it can be; without it the wheel is for all."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    (built,) = wheel.WheelBuilder(str(BUILD.parent)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    compiled = f"lwqc/quant/{native.LIBRARY.name}" in zipfile.ZipFile(built).namelist()
    assert compiled == (shutil.which("cc") is not None)
    assert compiled == (not built.endswith("-none-any.whl"))
