"""Side branches: what the pass writes, and that the runtime computes with it."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from pydantic import ValidationError

import lwqc.cli.demo
from lwqc import cli
from lwqc.backends.cpu import CpuTarget
from lwqc.decide import planning
from lwqc.decide.compress import open_version
from lwqc.errors import InputError
from lwqc.graph.sites import find_sites
from lwqc.model import io
from lwqc.model.edit import add_initializer
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan, SiteEntry, Source
from lwqc.plans.recipe import find
from lwqc.runtime.session import Session, optimized_graph
from tests.build import model, normal
from tests.processor import INTEGER
from tests.quant.correlated import inputs

TARGET = CpuTarget()
GLYPHS = Path(__file__).parents[2] / "models" / "glyph_vit.onnx"
DIGITS = Path(lwqc.cli.demo.__file__).parent / "digits.onnx"
BRANCHES = [{"rank": 3}, {"columns": 5}, {"rank": 3, "columns": 5}]
FORMATS = ["w4b32h", "w2b16", "w8c", "nf4b32"]
every_branch = pytest.mark.parametrize("branch", BRANCHES, ids=str)


def lower(built, entries, grams=lambda site: None):
    weights = EncodedWeights(built, io.read_array, grams=grams)
    return TARGET.lower(built, Plan(source=Source(), quantize=entries), weights), weights


def effective(weights, entry, name="w", stored=np.float16):
    """The weight [N, K] that the codes and the stored factors stand for."""
    side = weights.side(name, entry)
    count = len(side.columns)
    down, up = (a.astype(stored).astype(np.float64) for a in (side.down, side.up))
    dense = down @ up[count:]
    dense[side.columns] += up[:count]
    return weights.get(name, entry).decode() + dense.T


def linear(op, k, n, number=np.float32, **attributes):
    w = normal(n, k) if attributes.get("transB") else normal(k, n)
    weights = {"w": w.astype(number)}
    if op == "Gemm":
        weights["b"] = normal(n, seed=5).astype(number)
    kinds = {v: int(ir.DataType.from_numpy(np.dtype(number))) for v in "xy"}
    return model([(op, ["x", *weights], "y", attributes)], weights, {"x": ["m", k]}, ["y"],
                 types=kinds)  # fmt: skip


@every_branch
@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(("op", "trans"), [("MatMul", None), ("Gemm", 0), ("Gemm", 1)])
def test_the_runtime_computes_with_codes_and_factors(op, trans, text, branch):
    built = linear(op, 96, 40, **({} if trans is None else {"transB": trans}))
    entry = SiteEntry(weight=text, **branch)
    lowered, weights = lower(built, {"w": entry})
    onnx.checker.check_model(ir.serde.serialize_model(lowered.model), full_check=True)
    assert not TARGET.misplaced(lowered)
    x = normal(5, 96, seed=2)
    expected = x @ effective(weights, entry).T
    if op == "Gemm":
        expected += built.graph.initializers["b"].const_value.numpy()
    found = Session(lowered.model)({"x": x})["y"]
    # Sums of 96 float32 products in another order.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@every_branch
@pytest.mark.parametrize("activation", ["dynamic", "static"])
def test_the_branch_reads_activations_in_float(branch, activation):
    built = linear("MatMul", 96, 40)
    entry = SiteEntry(weight=INTEGER, activation=activation, **branch)
    plan = Plan(source=Source(), quantize={"w": entry}, activations={"x": {"low": -5, "high": 5}})
    weights = EncodedWeights(built, io.read_array)
    lowered = TARGET.lower(built, plan, weights)
    assert not TARGET.misplaced(lowered)
    x = normal(5, 96, seed=2).clip(-5, 5)
    decoded = weights.get("w", entry).decode()
    expected = x @ effective(weights, entry).T
    found = Session(lowered.model)({"x": x})["y"]
    step = 10 / 255 if activation == "static" else (x.max() - x.min()) / 255
    assert np.abs(found - expected).max() <= step * np.abs(decoded).sum(axis=1).max()


@every_branch
def test_float16_model(branch):
    built = linear("MatMul", 64, 40, np.float16)
    entry = SiteEntry(weight="w4b32h", **branch)
    lowered, weights = lower(built, {"w": entry})
    assert not [n for n in lowered.model.graph if n.op_type == "Cast"]
    x = normal(3, 64, seed=1).astype(np.float16)
    found = Session(lowered.model)({"x": x})["y"]
    assert found.dtype == np.float16
    expected = x.astype(np.float64) @ effective(weights, entry).T
    # Sums and results are rounded to 11 bits.
    np.testing.assert_allclose(found.astype(float), expected, atol=4e-3 * np.abs(expected).max())


def test_what_is_stored():
    built = linear("MatMul", 96, 40)
    entry = SiteEntry(weight="w4b32h", rank=3, columns=5)
    lowered, _ = lower(built, {"w": entry})
    stored = lowered.model.graph.initializers
    assert {n: (v.dtype.name, list(v.shape)) for n, v in stored.items() if "side" in n} == {
        "w_side_columns": ("INT32", [5]),
        "w_side_down": ("FLOAT16", [96, 3]),
        "w_side_up": ("FLOAT16", [8, 40]),
    }
    assert io.weight_bytes(lowered.model) == entry.size_bytes(40, 96)
    assert [o.name for o in lowered.model.graph.outputs] == ["y"]
    executed = [n.op_type for n in optimized_graph(lowered.model).node]
    assert sorted(executed) == ["Concat", "Gather", "MatMul", "MatMul", "MatMulNBits", "Sum"]


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_weights_out_of_the_range_of_float16_have_float32_factors(scale):
    built = linear("MatMul", 96, 40)
    values = built.graph.initializers["w"].const_value.numpy() * np.float32(scale)
    built.graph.initializers["w"].const_value = ir.tensor(values, name="w")
    entry = SiteEntry(weight="w4b32", rank=3, columns=5)
    lowered, weights = lower(built, {"w": entry})
    assert lowered.model.graph.initializers["w_side_up"].dtype == ir.DataType.FLOAT
    x = normal(5, 96, seed=2)
    expected = x @ effective(weights, entry, stored=np.float32).T
    found = Session(lowered.model)({"x": x})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_dropped_branch_is_noticed():
    """Control: the tolerance of the tests above tells a model with a branch from one without."""
    built = linear("MatMul", 96, 40)
    x = normal(5, 96, seed=2)
    for branch in BRANCHES:
        entry = SiteEntry(weight="w8c", **branch)
        lowered, weights = lower(built, {"w": entry})
        join = next(n for n in lowered.model.graph if n.op_type == "Sum")
        zero = ir.tensor(np.zeros(1, np.float32), name="zero")
        join.replace_input_with(1, add_initializer(lowered.model.graph, zero))
        expected = x @ effective(weights, entry).T
        found = Session(lowered.model)({"x": x})["y"]
        assert np.abs(found - expected).max() > 1e-4 * np.abs(expected).max()


@every_branch
def test_every_use_of_a_shared_weight_with_one_copy_of_the_factors(branch):
    rows = [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}),
            ("MatMul", ["r", "w"], "y", {})]  # fmt: skip
    built = model(rows, {"w": normal(64, 64, scale=0.1)}, {"x": ["b", "s", 64]}, ["h", "y"])
    entry = SiteEntry(weight="w4b32h", **branch)
    lowered, weights = lower(built, {"w": entry})
    assert io.weight_bytes(lowered.model) == entry.size_bytes(64, 64)
    x, w = normal(2, 3, 64, seed=1), effective(weights, entry).T
    found = Session(lowered.model)({"x": x})
    np.testing.assert_allclose(found["h"], x @ w, atol=1e-5)
    np.testing.assert_allclose(found["y"], np.maximum(x @ w, 0) @ w, atol=1e-5)
    assert "Cast" not in {n.op_type for n in optimized_graph(lowered.model).node}


def test_use_inside_an_if_body():
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["inner"])],
        "then", [], [helper.make_tensor_value_info("inner", 1, ["m", 40])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["inner2"])],
        "else", [], [helper.make_tensor_value_info("inner2", 1, ["m", 40])],
        [numpy_helper.from_array(normal(64, 40, seed=4), "v")],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)],
        "g",
        [
            helper.make_tensor_value_info("x", 1, ["m", 64]),
            helper.make_tensor_value_info("c", 9, []),
        ],
        [helper.make_tensor_value_info("y", 1, ["m", 40])],
        [numpy_helper.from_array(normal(64, 40), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    built = ir.serde.deserialize_model(proto)
    entry = SiteEntry(weight="w4b32h", rank=2, columns=3)
    lowered, weights = lower(built, {s.name: entry for s in find_sites(built).sites})
    x = normal(4, 64, seed=9)
    for condition, name in ((True, "w"), (False, "v")):
        found = Session(lowered.model)({"x": x, "c": np.array(condition)})["y"]
        np.testing.assert_allclose(found, x @ effective(weights, entry, name).T, atol=1e-4)


def test_codes_and_factors_are_encoded_once(monkeypatch):
    from lwqc.passes import to_encode

    rows = [("MatMul", ["x", "v"], "h", {}), ("MatMul", ["h", "w"], "y", {})]
    built = model(rows, {"v": normal(64, 64), "w": normal(64, 64)}, {"x": ["m", 64]}, ["y"])
    calls = []
    original = to_encode.encode_with_side
    monkeypatch.setattr(
        to_encode,
        "encode_with_side",
        lambda *a, **k: calls.append(1) or original(*a, **k),
    )
    entries = {n: SiteEntry(weight="w4b32ah", rank=2, columns=3) for n in "vw"}
    weights = EncodedWeights(built, io.read_array, budget_bytes=1)  # holds one weight
    monkeypatch.setattr("lwqc.passes.instruments.Verify.after", lambda *_: None)  # reads factors
    lowered = TARGET.lower(built, Plan(source=Source(), quantize=entries), weights)
    assert not calls
    for value in lowered.model.graph.initializers.values():
        value.const_value.numpy()
    assert len(calls) == 2


REFUSED = [
    (("Conv", ["x", "w"], "y", {}), (8, 16, 3, 3), [1, 16, 9, 9], {"rank": 2}, "not Conv"),
    (("Gather", ["w", "x"], "y", {}), (64, 32), ["m"], {"columns": 2}, "not Gather"),
    (("MatMul", ["x", "w"], "y", {}), (200, 8), ["m", 200], {"rank": 8}, r"rank 8 .*\[8, 200\]"),
    (("MatMul", ["x", "w"], "y", {}), (32, 64), ["m", 32], {"columns": 32}, "leave none of 32"),
]


@pytest.mark.parametrize(("row", "shape", "sizes", "branch", "reason"), REFUSED)
def test_near_misses_are_refused_with_a_reason(row, shape, sizes, branch, reason):
    types = {"x": 7} if row[0] == "Gather" else {}
    built = model([row], {"w": normal(*shape)}, {"x": sizes}, ["y"], types=types)
    without = SiteEntry(weight="w4b16")
    lower(built, {"w": without})
    with pytest.raises(InputError, match=f"^w .*{reason}"):
        lower(built, {"w": without.model_copy(update=branch)})


def test_tied_embeddings_are_refused():
    rows = [("Gather", ["w", "i"], "e", {}), ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["e", "t"], "y", {})]  # fmt: skip
    built = model(rows, {"w": normal(50, 64)}, {"i": ["b", 3]}, ["y"], types={"i": 7})
    with pytest.raises(InputError, match=r"^w .*not Gather"):
        lower(built, {"w": SiteEntry(weight="w4b32", rank=2)})


def test_columns_need_an_opset_but_ranks_do_not():
    built = linear("MatMul", 96, 40)
    site = find_sites(built).sites[0]
    for branch, legal in (({"rank": 3}, True), ({"columns": 3}, False)):
        form = TARGET.form(site, SiteEntry(weight="w4b32", **branch), 10)
        assert TARGET.refuses(form) is not legal


def test_the_output_error_falls_in_the_runtime():
    """On inputs with outlier channels; the Gram matrix is that of other rows."""
    x = inputs(300, 96)
    x[:, [5, 40, 41]] *= 10
    gram = x[:200].T @ x[:200] / 200
    built = linear("MatMul", 96, 40)
    test = x[200:].astype(np.float32)
    exact = Session(built)({"x": test})["y"]

    def error(**branch):
        entry = SiteEntry(weight="w3b32h", method="gptq", **branch)
        lowered, _ = lower(built, {"w": entry}, lambda site: gram[None])
        return np.square(Session(lowered.model)({"x": test})["y"] - exact).mean()

    for name in ("rank", "columns"):
        found = [error(**{name: v}) for v in (0, 2, 8, 24)]
        assert sorted(found, reverse=True) == found
        assert found[2] < 0.75 * found[0]


def test_plans_with_branches_survive_json_and_old_plans_have_none(tmp_path):
    plan = Plan(source=Source(), quantize={"w": SiteEntry(weight="w4b32", rank=8, columns=3)})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    old = json.loads((tmp_path / "plan.json").read_text())
    for name in ("rank", "columns"):
        del old["quantize"]["w"][name]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert not Plan.load(tmp_path / "old.json").quantize["w"].has_side
    for name in ("rank", "columns"):
        with pytest.raises(ValidationError, match=name):
            SiteEntry(weight="w4b32", **{name: -1})
    with pytest.raises(ValidationError, match=r"w: a side branch .* sequential"):
        Plan(source=Source(), quantize=plan.quantize, sequential=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rank": -1}, "rank"),
        ({"columns": 1.5}, "count or a share"),
        ({"kind": "fp4", "bits": 8}, "kind fp4"),
        ({"rank": 2, "allocator": "knapsack"}, "allocator uniform"),
        ({"columns": 2, "sequential": True}, "sequential"),
    ],
)
def test_recipes_that_make_no_sense(tmp_path, fields, reason):
    wanted = {"name": "x", "description": "x", "allocator": "uniform", **fields}
    lines = [
        f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in wanted.items()
    ]
    (tmp_path / "x.toml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=reason):
        find(str(tmp_path / "x.toml"))


def test_planning_sets_branches_where_they_are_legal_and_small():
    rows = [
        ("MatMul", ["x", "big"], "h", {}),
        ("MatMul", ["h", "thin"], "t", {}),
        ("Gather", ["rows", "i"], "g", {}),
    ]
    weights = {"big": normal(256, 200), "thin": normal(200, 8), "rows": normal(50, 64)}
    built = model(rows, weights, {"x": ["m", 256], "i": ["b"]}, ["t", "g"], types={"i": 7})
    work = open_version(built)
    plan = planning.uniform(work, 4, "none")
    assert set(plan.quantize) == set(weights)
    done = planning.with_side(work, plan, 8, 0.01)
    chosen = {n: (e.rank, e.columns) for n, e in done.quantize.items()}
    assert chosen == {"big": (8, 3), "thin": (0, 0), "rows": (0, 0)}
    assert "no side branch: a side branch of rank 8" in done.kept_float["thin"]
    assert "not Gather" in done.kept_float["rows"]
    assert planning.with_side(work, plan, 0, 2).quantize["thin"].columns == 2
    huge = planning.with_side(work, plan, 199, 0)
    assert huge.kept_float["big"] == "no side branch: would not be smaller than float"
    assert planning.with_side(work, plan, 0, 0) is plan


def test_float4_where_it_has_a_kernel():
    rows = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "y", {})]
    built = model(rows, {"a": normal(128, 100), "b": normal(100, 64)}, {"x": ["m", 128]}, ["y"])
    plan = planning.uniform(open_version(built), 4, "none", kind="fp4")
    assert {n: str(e.weight) for n, e in plan.quantize.items()} == {"a": "fp4b64h", "b": "w4b16h"}


@pytest.mark.parametrize("recipe", ["lorc", "spqr-columns", "zeroquant-fp"])
def test_recipes_on_the_command_line(recipe, tmp_path, monkeypatch, capsys):
    out, saved = tmp_path / "small.onnx", tmp_path / "plan.json"
    arguments = ["--data", "tests.few_samples:glyph_calibration", "--recipe", recipe, "--json"]
    plan_out = ["--plan-out", str(saved)]
    monkeypatch.setattr(
        sys, "argv", ["lwqc", "compress", str(GLYPHS), "-o", str(out), *arguments, *plan_out]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    sites = {s.name: s for s in find_sites(io.load(GLYPHS)).sites}
    report, plan = json.loads(printed.out), Plan.load(saved)
    beside = {n for n, e in plan.quantize.items() if e.has_side}
    assert len(beside) == 25  # six layers of four, and the head
    assert all("not Conv" in plan.kept_float[n] for n in plan.quantize if n not in beside)
    for row in report["sites"]:
        if row["name"] in beside:
            entry, site = plan.quantize[row["name"]], sites[row["name"]]
            assert row["bytes_after"] == entry.size_bytes(site.n, site.k) < row["bytes_before"]
            assert row["bytes_after"] > entry.weight.size_bytes(site.n, site.k)
            assert row["format"][:3] == ("e2m" if recipe == "zeroquant-fp" else "w4b")
    assert report["drop"] < 0.01


def test_without_a_linear_layer_the_report_says_why():
    done = lwqc.compress(DIGITS, data="lwqc.cli.demo.digits:calibration", recipe="lorc")
    assert done.plan.quantize
    for name, entry in done.plan.quantize.items():
        assert not entry.has_side
        assert "not Conv" in done.plan.kept_float[name]
