"""Where the time of a run goes: of a run like most, by operator."""

import json

import numpy as np
import pytest

from lwqc.runtime import profile
from lwqc.runtime.profile import OperatorTime, operator_times
from lwqc.testing import model_of


def test_each_operator_of_the_optimised_graph_has_a_time():
    model = model_of(
        """g (float[64,64] x) => (float[64,64] y) {
            h = MatMul(x, x) s = Sigmoid(h) y = MatMul(s, x) }"""
    )
    found = operator_times(model, {"x": np.ones((64, 64), np.float32)})
    assert {op: time.nodes for op, time in found.items()} == {"MatMul": 2, "Sigmoid": 1}
    assert all(0 < time.milliseconds < 1e3 for time in found.values())


class Profiled:
    """A session whose profile is given: microseconds of `Conv` and of `Mul`, run by run."""

    runs = ()

    def __init__(self, model, settings, label):
        self.path = f"{settings.profile}.json"

    def __call__(self, feeds):
        return {}

    def seconds(self, feeds):
        return 1.0

    def profile(self):
        events, now = [{"cat": "Session", "name": "model_loading", "ts": 0, "dur": 5}], 10
        for conv, mul in self.runs:
            events.append({"cat": "Session", "name": "model_run", "ts": now, "dur": conv + mul})
            for op, took in (("Conv", conv), ("Mul", mul)):
                args, name = {"op_name": op}, f"{op}_kernel_time"
                events.append({"cat": "Node", "name": name, "ts": now, "dur": took, "args": args})
                now += took
        with open(self.path, "w") as file:
            json.dump(events, file)
        return self.path


@pytest.mark.parametrize("runs", [6, 7])
def test_a_run_that_something_interrupts_does_not_count(monkeypatch, runs):
    """Nor do those before the timed ones."""
    Profiled.runs = [(9000, 9000)] * 2 + [(300, 40)] * (runs - 1) + [(90_000, 40)]
    monkeypatch.setattr(profile, "Session", Profiled)
    found = operator_times(b"", {})
    assert found == {"Conv": OperatorTime(0.3, 1), "Mul": OperatorTime(0.04, 1)}
