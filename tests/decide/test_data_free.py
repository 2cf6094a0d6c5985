"""Every recipe runs on every processor, with data and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import lwqc
import lwqc.cli.demo
from lwqc.cli.demo import digits
from lwqc.compile.execute import apply_plan
from lwqc.decide.compress import compress_version, make_plan, open_version
from lwqc.decide.data_free import without_data
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import Recipe, find, named
from lwqc.quant.methods import DATA_METHODS
from lwqc.runtime.session import Session
from tests.build import model, normal
from tests.conftest import ALL
from tests.short import short

DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
DATA = "lwqc.cli.demo.digits:calibration"
FIRST = next(digits.calibration())["image"]
DRAWN = [{"image": FIRST[i : i + 8]} for i in (0, 8)]
PROCESSORS = ["cpu-vnni", "cpu-avx2", "cpu-arm"]
# What the digits classifier, or a processor, does not have; said in these words.
LACKING = {
    **dict.fromkeys(("evit", "evit-w8", "zero-tprune"), "has no self-attention"),
    "mc-smoe": "no experts can be merged",
    "axformer": "needs a metric or a largest divergence",
    "llm-drop-attention": "has no attention branch",
    "llm-drop-mlp": "has no mlp branch",
    "shallow": "has no residual branches that could be parallel",
    "slicegpt": "has no residual stream that could be sliced",
    "slicegpt-shared": "has no residual stream that could be sliced",
    "sparse24": "has no sparse kernels",
    "sparse24-exchange": "has no sparse kernels",
    "sparse24-magnitude": "has no sparse kernels",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    short(monkeypatch)


def goals(recipe):
    budget = recipe.allocator in ("rank", "search")
    return Goals(max_size=0.4) if budget else Goals()


def turns():
    """Each recipe with data on one processor and without on the next; $LWQC_TEST_ALL for all."""
    for number, name in enumerate(named()):
        for place, target in enumerate(PROCESSORS):
            for given in (False, True):
                if ALL or (number + given) % len(PROCESSORS) == place:
                    yield pytest.param(name, target, given, id=f"{name}-{target}-{given}")


@pytest.mark.parametrize(("name", "target", "given"), turns())
def test_every_recipe_runs(name, target, given):
    recipe = find(name)
    data = DRAWN if given else None
    pruning = recipe.prune is not None  # which tries other widths until one is fast
    work = open_version(DIGITS, target=target, data=data, skip_checks=pruning)
    if name in LACKING:
        with pytest.raises(InputError, match=LACKING[name]):
            compress_version(work, goals(recipe), recipe)
        return
    done = compress_version(work, goals(recipe), recipe)
    assert Session(done.model)(work.job.data.fit.first())["logits"].shape[1:] == (10,)
    missed = [note for note in done.decisions.notes if "no data was given" in note]
    if data is not None:
        assert not missed
    elif without_data(recipe)[1]:
        assert missed
    assert not {e.method for e in done.decisions.quantize.values() if data is None} & DATA_METHODS


@pytest.mark.parametrize("name", named())
def test_what_is_left_looks_at_no_data_and_is_the_recipe_where_it_never_did(name):
    recipe = find(name)
    suited, notes = without_data(recipe)
    assert Recipe.model_validate(suited.model_dump()) == suited
    assert (suited == recipe) or notes
    again, left = without_data(suited)
    assert again == suited
    assert set(left) <= set(notes)


# Reports and plans say it


def test_the_report_says_what_was_done_instead(run, tmp_path):
    out = tmp_path / "o.onnx"
    code, text, _ = run("compress", DIGITS, "-o", out, "--recipe", "gptq", "--json")
    assert code == 0
    note = "no data was given: codes are chosen by k-quant instead of gptq-order"
    assert json.loads(text)["notes"][-1] == note
    assert note in " ".join(run("compress", DIGITS, "-o", out, "--recipe", "gptq")[1].split())
    given = run("compress", DIGITS, "-o", out, "--recipe", "gptq", "--data", DATA, "--json")
    assert not any("no data was given" in note for note in json.loads(given[1])["notes"])


@pytest.mark.parametrize("name", ["gptq", "obspa", "ablation-refit", "smoothquant", "auto"])
def test_a_plan_made_without_data_is_applied_without_data(name):
    work = open_version(DIGITS, skip_checks=True)
    plan = make_plan(work, Goals(), name)
    assert plan.notes
    again = apply_plan(open_version(DIGITS), plan)
    assert again.decisions.notes == plan.notes


def normed():
    """A residual stream behind an embedding, and a norm in front of its only branch."""
    rows = [
        ("Gather", ["table", "ids"], "s", {"axis": 0}),
        ("LayerNormalization", ["s", "gain", "shift"], "n", {"axis": -1}),
        ("MatMul", ["n", "up"], "u", {}),
        ("Relu", ["u"], "r", {}),
        ("MatMul", ["r", "down"], "d", {}),
        ("Add", ["s", "d"], "t", {}),
        ("LayerNormalization", ["t", "gain2", "shift2"], "m", {"axis": -1}),
        ("MatMul", ["m", "head"], "y", {}),
    ]
    weights = {
        "table": normal(100, 64), "up": normal(64, 256, seed=1, scale=0.1),
        "down": normal(256, 64, seed=2, scale=0.1), "head": normal(64, 200, seed=3),
        "gain": normal(64, seed=4), "shift": normal(64, seed=5),
        "gain2": normal(64, seed=6), "shift2": normal(64, seed=7),
    }  # fmt: skip
    return model(
        rows, weights, {"ids": ["batch", 16]}, ["y"], types={"ids": int(ir.DataType.INT64)}
    )


def test_streams_are_narrowed_along_random_inputs_and_the_plan_knows():
    plan = make_plan(open_version(normed()), Goals(), "slicegpt-shared")
    assert [entry.calibration for entry in plan.slice] == ["random"]
    assert "no data was given: the directions that stay come from random inputs" in plan.notes
    first, second = (apply_plan(open_version(normed()), plan).model for _ in range(2))
    feeds = {"ids": np.arange(16)[None]}
    assert np.array_equal(Session(first)(feeds)["y"], Session(second)(feeds)["y"])


def test_a_budget_that_only_a_search_keeps_needs_no_data(run, tmp_path):
    arguments = ["--max-macs", "0.8", "--workers", "1", "--json"]
    code, text, err = run("compress", DIGITS, "-o", tmp_path / "o.onnx", *arguments)
    assert code in (0, 3), err
    note = "no data was given: candidates are compared on random inputs"
    assert note in json.loads(text)["notes"]


# What was asked for by name is done or refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "gptq"], "method gptq looks at the data: give --data"),
        (["--sequential"], "sequential calibration looks at the data: give --data"),
    ],
)
def test_methods_that_were_asked_for_are_not_replaced(options, reason, run, tmp_path):
    code, _, err = run("quantize", DIGITS, "-o", tmp_path / "o.onnx", "--bits", "4", *options)
    assert code == 2
    assert reason in err
    assert not list(tmp_path.iterdir())


def test_nor_from_python():
    with pytest.raises(InputError, match="method gptq looks at the data"):
        lwqc.quantize(DIGITS, bits=4, method="gptq")
    done = lwqc.quantize(DIGITS, activations="static")
    assert "static" in {e.activation for e in done.decisions.quantize.values()}
