"""What is published holds what it needs, and works outside of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import lwqc

pytest.importorskip("hatchling", reason="builds packages; of lwqc[test]")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
# What tests, docs and readers of the source need beside `lwqc`, `tests`, `docs` and `examples`.
NEEDED = [
    "models/glyph_vit.onnx", "models/glyphs.npz", "models/stdlib_lm.data", "models/README.md",
    "benchmarks/__init__.py", "tests/zoo/bert.dynamo.onnx", "tests/frontends/files/keras.onnx",
    "docs/schemas/plan.json", "docs/images/report_search.png", "examples/my_pass/square.py",
    "lwqc/cli/demo/digits.onnx", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
    "CITATION.cff", "LICENSE", "mkdocs.yml", "constraints.txt", "hatch_build.py", "pyproject.toml",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with sdist and wheel, the latter made of the former."""
    made = tmp_path_factory.mktemp("dist")
    call("-m", "hatchling", "build", "-t", "sdist", "-d", made, where=ROOT)
    (sdist,) = made.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(made, filter="data")
    (unpacked,) = [folder for folder in made.iterdir() if folder.is_dir()]
    call("-m", "hatchling", "build", "-t", "wheel", "-d", made, where=unpacked)
    return made


def call(*arguments, where, program=sys.executable):
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        cwd=where,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_package_has_what_the_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        files = {member.name.partition("/")[2] for member in packed if member.isfile()}
    assert {*NEEDED} - files == set()
    assert not [name for name in files if name.endswith((".pyc", ".so"))]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no checkout of git: what else there is cannot be told")
    ours = [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]
    assert {name for name in ours if not name.startswith((".", "findings"))} - files == set()


def test_the_wheel_works_outside_of_a_checkout(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {"lwqc/py.typed", "lwqc/plans/schemas/plan.json", "lwqc/cli/report/html/page.js"} <= {
        *names
    }
    assert not [name for name in names if name.startswith(("tests", "models", "benchmarks"))]
    venv.create(tmp_path / "env", symlinks=True)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = ["-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-index"]
    call(*pip, "--no-deps", "--disable-pip-version-check", wheel, where=tmp_path)
    (own,) = (tmp_path / "env").rglob("site-packages")
    # The packages that lwqc needs are those of the running environment; lwqc itself is found first.
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = call(
        "-c", "import lwqc; print(lwqc.__file__)", where=tmp_path, program=scripts / "python"
    )
    assert Path(where.strip()).is_relative_to(own)
    assert (
        call("--version", where=tmp_path, program=scripts / "lwqc") == f"lwqc {lwqc.__version__}\n"
    )
    call("demo", "-o", tmp_path / "demo.onnx", where=tmp_path, program=scripts / "lwqc")
    assert lwqc.load(tmp_path / "demo.onnx").graph.inputs[0].name == "image"
