"""Where the time of a run goes: of a run like most, by operator."""

import json

import numpy as np
import pytest

from lwqc.runtime import profile
from lwqc.runtime.profile import OperatorTime, kernel_seconds, operator_times
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
    lost = 0

    def __init__(self, model, settings, label):
        self.path = f"{settings.profile}.json"

    def __call__(self, feeds):
        return {}

    def seconds(self, feeds):
        return 1.0

    def profile(self):
        events, now = [{"cat": "Session", "name": "model_loading", "ts": 0, "dur": 5}], 10
        for conv, mul in self.runs:
            whole = {"cat": "Session", "name": "model_run", "ts": now, "dur": conv + mul}
            for op, took in (("Conv", conv), ("Mul", mul)):
                args, name = {"op_name": op}, f"{op}_kernel_time"
                events.append({"cat": "Node", "name": name, "ts": now, "dur": took, "args": args})
                now += took
            events.append(whole)  # the runtime notes it when it is over
        with open(self.path, "w") as file:
            json.dump(events[: len(events) - self.lost], file)
        return self.path


@pytest.mark.parametrize("runs", [6, 7])
def test_a_run_that_something_interrupts_does_not_count(monkeypatch, runs):
    """Nor do those before the timed ones."""
    Profiled.runs = [(9000, 9000)] * 2 + [(300, 40)] * (runs - 1) + [(90_000, 40)]
    monkeypatch.setattr(profile, "Session", Profiled)
    found = operator_times(b"", {})
    assert found == {"Conv": OperatorTime(0.3, 1), "Mul": OperatorTime(0.04, 1)}


@pytest.mark.parametrize(("lost", "found"), [(1, 0.3), (3, 0.3), (4, 9.0), (12, None)])
def test_what_the_profile_has_no_room_for_is_no_time(monkeypatch, lost, found):
    """Of two runs to warm up and two others: what is whole of those, or of these."""
    Profiled.runs = [(9000, 9000)] * 2 + [(300, 40), (300, 40)]
    monkeypatch.setattr(Profiled, "lost", lost)
    monkeypatch.setattr(profile, "Session", Profiled)
    times = operator_times(b"", {})
    assert (times["Conv"].milliseconds if found else times.get("Mul")) == found


def test_kernels_are_timed_without_what_stands_around_them():
    models = [
        model_of(
            f"""g (float[64,64] x) => (float[64,64] y) {{
            h = MatMul(x, x) t = Transpose <perm = [1, 0]> (h) {product} y = Sigmoid(s) }}"""
        )
        for product in ("s = Identity(t)", "s = Add(t, x)")
    ]
    feeds = {"x": np.ones((64, 64), np.float32)}
    plain = kernel_seconds(models, feeds, seconds=0.02, label="two")
    fewer = kernel_seconds(
        models, feeds, seconds=0.02, label="two", without={"MatMul", "Transpose", "Sigmoid", "Add"}
    )
    assert len(plain) == len(fewer) == 2
    assert all(min(own) > 0 for own in plain)
    assert [set(own) for own in fewer] == [{0.0}, {0.0}]


def test_each_run_is_the_sum_of_its_kernels(monkeypatch):
    Profiled.runs = [(300, 40), (320, 44)]
    monkeypatch.setattr(profile, "Session", Profiled)
    monkeypatch.setattr(profile, "time_turns", lambda *_, **__: [])
    assert kernel_seconds([b""], {}, seconds=1.0, label="one") == [
        [pytest.approx(340e-6), pytest.approx(364e-6)]
    ]
    (convs,) = kernel_seconds([b""], {}, seconds=1.0, without={"Mul"}, label="one")
    assert convs == [pytest.approx(300e-6), pytest.approx(320e-6)]
