"""docs/writing-a-budget.md ends in a budget that works in the two places which the page names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import lwqc
from lwqc.cli.demo.digits import calibration
from tests.doc_pages import example

PACKAGE = Path(lwqc.__file__).parent
OPTIONS = "plans/options.py"
# As in tests/short.py: the process is another one.
SHORT = """
from lwqc.decide.allocators.evolutionary import Settings
from lwqc.decide.search import control

control.EFFORTS["low"] = Settings(generations=2, offspring=4, survivors=(2,))
"""
SHOW = """
import sys
from lwqc.cli import main

print(outcome.name, outcome.reached / (2 * outcome.asked))
sys.argv = ["lwqc", "compress", "--help"]
main()
"""


@pytest.fixture
def extended(tmp_path):
    """A folder with lwqc, two files of which are the reader's."""
    shutil.copytree(PACKAGE, tmp_path / "lwqc", copy_function=os.symlink)
    files = example("writing-a-budget.md").files
    (tmp_path / "lwqc/decide/budgets/max_parameters.py").write_text(files["max_parameters.py"])
    before, mark, after = (PACKAGE / OPTIONS).read_text().partition("    fastest: Annotated[")
    assert mark
    (tmp_path / "lwqc" / OPTIONS).unlink()
    field = textwrap.indent(files["option.py"].partition("\n")[2], "    ")
    (tmp_path / "lwqc" / OPTIONS).write_text(before + field + mark + after)
    shutil.copy(PACKAGE / "cli/demo/digits.onnx", tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", **next(calibration()))
    return tmp_path


def test_the_example_is_met(extended):
    done = subprocess.run(
        [sys.executable, "-c", SHORT + example("writing-a-budget.md").use + SHOW],
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, _, told = done.stdout.partition("\n")
    name, share = first.split()
    assert name == "parameters"
    assert 0.25 < float(share) <= 0.5
    assert "--max-parameters" in told
