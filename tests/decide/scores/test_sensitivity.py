import numpy as np
import pytest

from lwqc.decide.scores.sensitivity import site_sensitivity
from lwqc.decide.scores.zero_deviation import zd
from lwqc.model import io
from lwqc.runtime.session import Session
from tests.build import model, normal


def test_zd_counts_weights_above_one_deviation():
    weight = np.array([0.0] * 8 + [10.0, -10.0], np.float32)
    assert zd(weight) == pytest.approx(0.1)
    assert zd(weight, two_sided=True) == pytest.approx(0.2)
    assert zd(np.ones(5, np.float32)) == 0


def test_zd_of_a_gaussian_is_its_tail():
    assert zd(normal(100_000)) == pytest.approx(0.1587, abs=0.005)


def net():
    return model(
        [
            ("Gather", ["e", "i"], "g", {}),
            ("MatMul", ["g", "w"], "h", {}),
            ("Transpose", ["e"], "t", {"perm": [1, 0]}),
            ("MatMul", ["h", "t"], "y", {}),
        ],
        {"e": normal(40, 32), "w": normal(32, 32, seed=1)},
        {"i": ["b", 3]},
        ["y"],
        types={"i": 7},
    )


def test_sensitivity_is_what_replacing_the_weight_does():
    """Also for a tied weight, whose two uses change together."""
    built = net()
    data = [{"i": np.array([[1, 2, 39]])}, {"i": np.array([[0, 5, 7]])}]
    changed = {"e": normal(40, 32, seed=7), "w": np.zeros((32, 32), np.float32)}
    trials = [("e",), ("w",), ("e", "w")]
    found = site_sensitivity(built, trials, changed.__getitem__, data, Session, io.read_array)
    e, w = (built.graph.initializers[n].const_value.numpy() for n in "ew")

    def run(e, w):
        return np.concatenate([e[f["i"]] @ w @ e.T for f in data])

    reference = run(e, w)
    expected = {
        trial: ((run(*weights) - reference) ** 2).mean() / reference.var()  # few rows: all as one
        for trial, weights in {
            ("e",): (changed["e"], w),
            ("w",): (e, changed["w"]),
            ("e", "w"): (changed["e"], changed["w"]),
        }.items()
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_replacing_by_the_same_weight_costs_nothing():
    built = net()
    data = [{"i": np.array([[1, 2, 3]])}]
    same = {"w": built.graph.initializers["w"].const_value.numpy().T}
    found = site_sensitivity(built, [("w",)], same.__getitem__, data, Session, io.read_array)
    assert found == {("w",): 0.0}
