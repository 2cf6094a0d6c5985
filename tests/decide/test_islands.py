"""Convolutions that are not worth their conversions are left out, together or alone."""

from __future__ import annotations

from collections.abc import Mapping

from lwqc.decide import planning
from lwqc.decide.compress import open_version
from lwqc.decide.islands import islands, worth_it
from lwqc.graph.sites import find_sites
from tests.build import Row, model, normal

CHAIN: list[Row] = [
    ("Conv", ["x", "wa"], "a", {}),
    ("Sigmoid", ["a"], "s", {}),
    ("Conv", ["s", "wb"], "b", {}),
    ("Erf", ["b"], "e", {}),
    ("Conv", ["e", "wc"], "c", {}),
    ("Erf", ["c"], "y", {}),
]
SIZES = dict.fromkeys("xasbecy", 100)


def net():
    weights = {f"w{n}": normal(8, 8, 1, 1, seed=i) for i, n in enumerate("abc")}
    return model(CHAIN, weights, {"x": [1, 8, 5, 5]}, ["y"])


def left_in(gains: Mapping[str, float], rate: float, sizes: Mapping[str, int] = SIZES) -> set[str]:
    built = net()
    return worth_it(built.graph, find_sites(built).sites, gains, sizes, rate)


def test_an_island_has_to_save_more_than_its_borders_cost() -> None:
    gains = {"wa": 0.5, "wb": 0.4, "wc": 0.7}
    assert left_in(gains, 0.001) == {"wa", "wb", "wc"}
    assert left_in(gains, 0.004) == {"wa", "wb"}  # c alone has two borders of 0.4
    assert left_in(gains, 0.005) == set()


def test_one_that_is_slower_stays_where_leaving_it_out_would_make_borders() -> None:
    gains = {"wa": 0.9, "wb": -0.1, "wc": 0}
    assert left_in(gains, 0.002, {**SIZES, "b": 1}) == {"wa", "wb"}
    assert left_in(gains, 0.002) == {"wa"}


def test_one_conversion_serves_all_readers() -> None:
    rows: list[Row] = [
        ("Conv", ["x", "wa"], "a", {}),
        ("Erf", ["a"], "e", {}),
        ("Tanh", ["a"], "t", {}),
        ("Add", ["e", "t"], "y", {}),
    ]
    built = model(rows, {"wa": normal(8, 8, 1, 1)}, {"x": [1, 8, 5, 5]}, ["y"])
    sites = find_sites(built).sites
    assert worth_it(built.graph, sites, {"wa": 1.0}, {"x": 1, "a": 100}, 0.009) == {"wa"}
    assert worth_it(built.graph, sites, {"wa": 1.0}, {"x": 1, "a": 100}, 0.011) == set()


def test_the_plan_tells_which_may_be_8_bit() -> None:
    work = open_version(net(), data=[{"x": normal(1, 8, 5, 5, seed=i)} for i in range(2)])
    plan = planning.calibrate(work, planning.uniform(work, 8, "static"), "minmax")
    static = {n for n, e in plan.quantize.items() if e.activation == "static"}
    assert len(static) == 3
    for found in islands(work, plan):
        assert found
        assert found <= static
    fewer = planning.weight_only(work, plan, sorted(static)[:2])
    assert islands(work, fewer) == []  # a single one is no choice of places
