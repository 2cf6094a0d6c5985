"""Every pass that a text can name, on every model in which rewrites go wrong."""

import pytest

from lwqc.passes.pipeline import Pipeline
from lwqc.passes.registry import BUILT_IN
from lwqc.testing import assert_survives

# Options of passes that have none by default.
GIVEN = {
    "graphsurgeon": "{function=tests.passes.surgery:nothing}",
    "parallel-branches": "{pairs=}",
    "raise-opset": "{version=23}",
    "remove-branches": "{names=}",
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_pass_survives_every_trap(name, trap, tmp_path):
    (step,) = Pipeline.parse(name + GIVEN.get(name, "")).steps
    assert_survives(step, trap, tmp_path)
