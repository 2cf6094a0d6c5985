"""Two formats by how much layers matter: Layer-Wise Quantization."""

import json
from pathlib import Path

import numpy as np
import pytest

import lwqc
from lwqc.cli import demo
from lwqc.decide.compress import open_version
from lwqc.decide.importance import layer_importance
from lwqc.decide.scores.zero_deviation import zd
from lwqc.errors import InputError
from tests.build import Row, model, normal

DIGITS = Path(demo.__file__).parent / "digits.onnx"
WIDTH, HIDDEN, BLOCKS = 64, 96, 3


def skewed(*shape, share, seed):
    """A weight of which a share stands out."""
    noise = normal(*shape, seed=seed, scale=0.1)
    return noise + (np.random.default_rng(seed).random(shape) < share).astype(np.float32)


WEIGHTS = {
    "embed": skewed(128, WIDTH, share=0.02, seed=9),
    # Outstanding weights: many in what goes up, few in what goes down; over all, 10, 4 and 7 %.
    **{
        f"{way}{i}": skewed(*shape, share=share * 2 * (0.9 if way == "up" else 0.1), seed=i)
        for i, share in enumerate((0.10, 0.04, 0.07))
        for way, shape in (("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH)))
    },
}
FEEDS = [{"i": np.arange(24).reshape(2, 12) % 128}]


@pytest.fixture(scope="module")
def net():
    """An embedding and three residual blocks of two products each."""
    rows: list[Row] = [("Gather", ["embed", "i"], "x0", {})]
    for i in range(BLOCKS):
        rows += [
            ("MatMul", [f"x{i}", f"up{i}"], f"u{i}", {}),
            ("Relu", [f"u{i}"], f"r{i}", {}),
            ("MatMul", [f"r{i}", f"down{i}"], f"d{i}", {}),
            ("Add", [f"x{i}", f"d{i}"], f"x{i + 1}", {}),
        ]
    rows += [("Identity", [f"x{BLOCKS}"], "y", {})]
    return model(rows, WEIGHTS, {"i": ["b", 12]}, ["y"], types={"i": 7})


def test_zd_judges_blocks_and_not_kinds_of_matrices(net):
    found = layer_importance(open_version(net, data=FEEDS), "zd")
    pooled = [-zd(np.concatenate([WEIGHTS[f"{w}{i}"].ravel() for w in ("up", "down")]))
              for i in range(BLOCKS)]  # fmt: skip
    assert found == {
        f"{way}{i}": pooled[i] for i in range(BLOCKS) for way in ("up", "down")
    }  # what no block holds has none
    assert pooled[0] < pooled[2] < pooled[1]


def test_without_branches_every_weight_is_a_layer():
    weights = {"a": WEIGHTS["up0"], "b": WEIGHTS["down1"]}
    rows: list[Row] = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    plain = model(rows, weights, {"x": ["n", WIDTH]}, ["y"])
    found = layer_importance(open_version(plain, data=[{"x": normal(4, WIDTH)}]), "zd")
    assert found == {name: -zd(weight) for name, weight in weights.items()}


def formats(plan):
    return {name: f"{entry.weight}"[:2] for name, entry in plan.quantize.items()}


def test_whole_blocks_get_the_formats_that_were_asked_for(net, slow_low_bits):
    """One block of three at 2 bits: the one with most outstanding weights."""
    block, blocks = WEIGHTS["up0"].size * 2, sum(w.size for w in WEIGHTS.values())
    bits = 4.5 - 2 * block / blocks
    plan = lwqc.plan(net, data=FEEDS, recipe="lwq-zd", low="w2b32h", high="w4b32h", avg_bits=bits)
    low = {name for name, bits in formats(plan).items() if bits == "w2"}
    assert low == {"up0", "down0"}
    assert set(formats(plan).values()) == {"w2", "w4"}
    assert "embed: outside any residual block, the last to get w2b32h" in plan.notes


def test_a_format_without_a_kernel_is_told(net):
    plan = lwqc.plan(net, data=FEEDS, recipe="lwq-zd", low="fp4b32", high="w8b128h", avg_bits=6)
    assert set(formats(plan).values()) == {"w8"}
    assert any("has no fp4b32 for it" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("w4", {"low": "w2b32h"}, "--low: recipe w4 has no two formats"),
        ("auto", {"high": "w8c"}, "--high: recipe auto has no two formats"),
        ("lwq-lim", {"low": "w9"}, "--low: format: 'w9' is not of the form"),
        ("lwq-zd", {"low": "w8c", "high": "w4b32"}, "--low w8c has more bits than --high w4b32"),
    ],
)
def test_formats_that_cannot_be(net, recipe, options, words):
    with pytest.raises(InputError, match=words):
        lwqc.compress(net, data=FEEDS, recipe=recipe, avg_bits=4, **options)


def test_on_the_command_line(tmp_path, run):
    out = tmp_path / "small.onnx"
    code, text, err = run(
        "compress", DIGITS, "-o", out, "--data", "lwqc.cli.demo.digits:calibration",
        "--recipe", "lwq-lim", "--low", "w2b32h", "--high", "w4b32h", "--avg-bits", "4", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert {row["format"][:2] for row in json.loads(text)["sites"]} - {"fl"} == {"w2", "w4"}


def test_the_size_counts_what_is_added_to_the_graph(net, tmp_path):
    """Nodes and attributes of every weight that is rewritten too."""
    size = 25_500
    done = lwqc.compress(net, data=FEEDS, recipe="lwq-zd", low="w2b32h", high="w8b128h",
                         max_size=f"{size}B")  # fmt: skip
    assert done.save(tmp_path / "small.onnx", verify=False)
    assert (tmp_path / "small.onnx").stat().st_size <= size
