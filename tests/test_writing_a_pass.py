"""docs/writing-a-pass.md: what it shows is what `examples/my_pass` holds, and that works."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx
import pytest

from lwqc.model import io
from lwqc.passes import registry
from lwqc.testing import model_of

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "my_pass"
PAGE = (ROOT / "docs" / "writing-a-pass.md").read_text()
SQUARES = """g (float[n,4] x) => (float[n,4] y) {
    t = Constant<value = float {2.0}>()
    y = Pow(x, t)
}"""


def code(path: Path) -> str:
    """A file without the docstring on top."""
    return path.read_text().partition('"""\n\n')[2]


def test_the_page_shows_the_example():
    assert code(EXAMPLE / "square.py") in PAGE
    assert code(EXAMPLE / "test_square.py") in PAGE
    lines = [
        n for name in ("square.py", "test_square.py") for n in code(EXAMPLE / name).splitlines()
    ]
    assert len(lines) <= 60
    assert '\npow-to-mul = "square:PowToMul"\n' in PAGE


def test_the_tests_of_the_example_pass():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lwqc.testing.plugin", "-c", "/dev/null",
               "--rootdir", str(EXAMPLE), str(EXAMPLE)]  # fmt: skip
    done = subprocess.run(
        command, cwd=EXAMPLE, capture_output=True, text=True, env=None, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "14 passed" in done.stdout


@pytest.fixture
def published(monkeypatch):
    """The entry points of the example, as if it were installed."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    told = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    points = {n: EntryPoint(n, v, registry.GROUP) for n, v in told[registry.GROUP].items()}
    monkeypatch.setattr(registry, "from_packages", lambda: points)
    monkeypatch.setattr("lwqc.passes.catalogue.from_packages", lambda: points)
    return points


def test_a_published_pass_runs_by_name(published, run, tmp_path):
    io.save(model_of(SQUARES), tmp_path / "m.onnx")
    code, _, err = run("opt", tmp_path / "m.onnx", "-p", "pow-to-mul,clean",
                       "-o", tmp_path / "o.onnx", "--verify-each")  # fmt: skip
    assert code == 0, err
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == ["Mul"]
    code, out, _ = run("passes", "pow-to-mul")
    assert code == 0
    assert "Refuses: exponents that are computed" in out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere:Thing", "pass mine: nowhere:Thing cannot be loaded: No module named 'nowhere'"),
        ("json:Thing", "pass mine: json:Thing cannot be loaded: module 'json' has no attribute"),
        ("json:loads", "pass mine: json:loads is no class of passes of onnx_ir"),
    ],
)
def test_a_broken_package_is_one_line(published, run, tmp_path, value, message):
    published["mine"] = EntryPoint("mine", value, registry.GROUP)
    io.save(model_of(SQUARES), tmp_path / "m.onnx")
    code, _, err = run("opt", tmp_path / "m.onnx", "-p", "mine", "--bisect")
    assert code == 2
    assert message in err
    assert message in run("passes")[1]


def test_names_of_ours_are_not_taken(published):
    published["clean"] = published["join-equal"] = EntryPoint("x", "json:loads", registry.GROUP)
    assert registry.find("join-equal").__module__ == "lwqc.passes.join_equal"


def test_random_graphs_are_tried_as_the_page_says(published):
    (shown,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "@given" in b)
    made = {}
    exec(compile(shown.replace("max_examples=20", "max_examples=2"), "page", "exec"), made)
    made["test_random_graphs_stay_what_they_are"]()
