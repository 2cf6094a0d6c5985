"""docs/writing-a-pass.md: what it shows is what `examples/my_pass` holds, and that works."""

import os
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
from lwqc.passes.pipeline import Pipeline
from lwqc.testing import applied, assert_harmless, assert_untouched, model_of

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
    assert f"```toml\n{(EXAMPLE / 'pyproject.toml').read_text()}```" in PAGE


def test_the_tests_of_the_example_pass():
    """As the page says to run them where lwqc is found by a path alone."""
    assert "pytest -p\nlwqc.testing.plugin" in PAGE
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lwqc.testing.plugin", "-c", "/dev/null",
               "--rootdir", str(EXAMPLE), str(EXAMPLE)]  # fmt: skip
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=EXAMPLE, capture_output=True, text=True, env=alone, check=False
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


OPEN = """g (float[n,4] x, bool c) => (float[n,4] y) {
    h = HardSwish(x)
    y = If(c) <then_branch = a () => (float[n,4] p) { p = HardSwish(h) },
               else_branch = b () => (float[n,4] q) { q = Relu(h) }>
}"""


def test_the_pass_with_constants_attributes_options_and_bodies(published, tmp_path, monkeypatch):
    text = PAGE.partition("```python\n# open_hard_swish.py\n")[2].split("```")[0]
    (tmp_path / "open_hard_swish.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("open-hard-swish", "open_hard_swish:OpenHardSwish", registry.GROUP)
    published["open-hard-swish"] = point
    (step,) = Pipeline.parse("open-hard-swish{only=h,p}").steps
    assert step.only == ("h", "p")
    assert_harmless(step, OPEN)
    done = applied(step, OPEN)
    assert done.changes == 2
    found = [node.op_type for node in done.model.graph.all_nodes()]
    assert sorted(found) == sorted(["Mul", "HardSigmoid", "Mul"] * 2 + ["If", "Relu"])
    assert applied(type(step)(only=("p",)), OPEN).changes == 1
    assert_untouched(step, OPEN.replace("float[", "float16["), "its type is FLOAT16, not float32")


def test_random_graphs_are_tried_as_the_page_says(published):
    (shown,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "@given" in b)
    made = {}
    exec(compile(shown.replace("max_examples=20", "max_examples=2"), "page", "exec"), made)
    made["test_random_graphs_stay_what_they_are"]()
