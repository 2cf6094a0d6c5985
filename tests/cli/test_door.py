"""What is loaded before there is work to do; each check in a fresh process."""

import pkgutil
import subprocess
import sys

import pytest

import lwqc

# What every command needs once it works. Not pydantic: typer reads its options with it.
COMPUTING = {"numpy", "onnx", "onnx_ir", "onnxruntime", "sympy", "ml_dtypes"}
# What only some of them need, or late.
WHERE_USED = {
    "dask", "distributed", "networkx", "onnx_graphsurgeon", "onnxscript", "rich.progress",
    "scipy", "sklearn", "torch", "matplotlib",
}  # fmt: skip
EVERY_HELP = """
from typer.main import get_command
from lwqc.cli import app
command = get_command(app)
assert {"compress", "lower", "inspect", "recipes"} <= set(command.commands)
for words in ([], *([name] for name in command.commands)):
    command.main([*words, "--help"], standalone_mode=False)
"""
ENTRY = """
import pkgutil
import runpy
sys.argv = ["lwqc", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
except SystemExit as done:
    assert not done.code
"""


def loaded_by(code):
    """Names of the modules that a fresh process has after running the code."""
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import lwqc, lwqc.errors",
        EVERY_HELP,
        *(ENTRY.format(module=module) for module in ("lwqc", "lwqc.cli")),
    ],
)
def test_nothing_that_computes_is_loaded_before_there_is_work(code):
    found = loaded_by(code)
    assert "lwqc" in found
    assert not found & (COMPUTING | WHERE_USED)


def test_the_functions_load_only_what_every_command_needs():
    found = loaded_by("import lwqc\nlwqc.compress")
    assert "onnxruntime" in found
    assert not found & WHERE_USED


def test_public_names_are_those_of_their_modules():
    from lwqc import api, errors
    from lwqc.compile import compressed, saved_check
    from lwqc.model import io
    from lwqc.plans import recipe

    assert lwqc.plan is api.plan
    assert (lwqc.load, lwqc.save) == (io.load, saved_check.save)
    assert lwqc.Compressed is compressed.Compressed
    assert lwqc.Recipe is recipe.Recipe
    assert issubclass(lwqc.InputError, errors.LwqcError)
    assert set(lwqc.__all__) <= set(dir(lwqc))
    for name in lwqc.__all__:
        assert callable(getattr(lwqc, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lwqc.nonsense  # noqa: B018


def test_no_module_takes_the_place_of_a_public_name():
    """Whoever imports a module `lwqc.plan` would have it instead of the function."""
    modules = {found.name for found in pkgutil.iter_modules(lwqc.__path__)}
    assert not modules & set(lwqc.__all__)


def test_a_public_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(lwqc, "compress", len)
    assert lwqc.compress is len
