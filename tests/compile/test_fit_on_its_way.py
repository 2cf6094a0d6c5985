"""A fit on its way: what stays as it is meanwhile, and how often it is checked."""

from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc
from tests.compile.test_recover import SIZES, feeds, narrow, teacher
from tests.learn.test_to_torch import stored, weights

SCALED = """g (float[N,6] x) => (float[N,3] y) {
    h = MatMul(x, w) b = Add(h, bias) r = Relu(b) m = MatMul(r, v)
    s = Mul(m, gain) y = Add(s, shift) }"""


def test_channels_that_training_let_die_stay_dead():
    """As in the last normalisation of all-MiniLM-L6-v2: a step of Adam would be a new channel."""
    arrays = weights(SIZES)
    arrays["gain"] = np.array([1.0, 3e-33, 0.7], np.float32)
    arrays["shift"] = np.array([0.1, -1e-33, 0.2], np.float32)
    full = stored(SCALED, **arrays)
    kept = {"w": arrays["w"][:, :6], "bias": arrays["bias"][:6], "v": arrays["v"][:6]}
    small = stored(SCALED, **{**arrays, **kept})
    done = lwqc.recover(small, teacher=full, data=feeds(40), steps=200, lr=0.02)
    assert done.report.unchanged == ""
    assert done.report.drop_after < 0.5 * done.report.drop_before
    for name in ("gain", "shift"):
        found = done.model.graph.initializers[name].const_value.numpy()
        assert found[1] == arrays[name][1]
        assert (found[::2] != arrays[name][::2]).any()


@pytest.mark.parametrize(("steps", "count"), [(400, 20), (40, 4), (200, 8)])
def test_held_back_inputs_are_looked_at_no_longer_than_steps_take(steps, count):
    from lwqc.learn.distill import Distillation, checks

    seen = []
    usual = Distillation.held_losses

    def counted(self, held):
        seen.append(len(held))
        return usual(self, held)

    with patch.object(Distillation, "held_losses", counted):
        lwqc.recover(narrow(), teacher=teacher(), data=feeds(100 if count == 20 else 200),
                     steps=steps, lr=0.02)  # fmt: skip
    held = seen[0]
    assert checks(steps, held) == count
    assert len(seen) == count + 2  # before it: for the report, and for the fit
