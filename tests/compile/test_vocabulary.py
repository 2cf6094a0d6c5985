"""Token ids taken out of models: what is left computes as before, whatever else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import lwqc
from lwqc.cli import app
from lwqc.compile.vocabulary import _difference
from lwqc.errors import InputError, SessionError
from lwqc.plans.option_texts import parse_ids
from lwqc.runtime.session import Session
from models import stdlib_lm
from tests.small_models import Small

IDS, WIDTH = 20, 8
TEXT = np.array([[3, 5, 7], [17, 5, 3]])
KEPT = [0, 3, 5, 7, 17]


def model(head: str = "tied", padded: int | None = None, last: str = "") -> onnx.ModelProto:
    """A table, a layer and a head over all ids; `padded` is an id whose features become 0."""
    small = Small()
    ids = small.given("ids", TEXT, [("batch", 2), ("tokens", 3)])
    table = small.weight(IDS, WIDTH, name="table")
    x = small.op("Gather", table, ids)
    if padded is not None:
        pads = small.op("Equal", ids, small.keep(np.asarray(padded)))
        column = small.op("Unsqueeze", pads, small.ints(2))
        x = small.op("Where", column, small.keep(np.float32(0)), x)
    x = small.op("Relu", small.linear(x, WIDTH, WIDTH))
    if head == "none":
        return small.build(small.op("ReduceMean", x, small.ints(1), keepdims=0, name="logits"))
    turned = small.op("Transpose", table, perm=[1, 0])
    weight = turned if head == "tied" else small.weight(WIDTH, IDS, name="head")
    y = small.op("Add", small.op("MatMul", x, weight), small.weight(IDS, name="bias"), name="y")
    return small.build(small.op(last, y, axis=-1, name="logits") if last else y)


def pruned(proto: onnx.ModelProto, **options: Any) -> Any:
    return lwqc.prune_vocabulary(proto, **{"data": [{"ids": TEXT}], "unknown": 0, **options})


@pytest.mark.parametrize("head", ["tied", "own", "none"])
def test_kept_ids_have_the_same_outputs(head: str) -> None:
    proto = model(head)
    done = pruned(proto, heads=["y"] if head == "own" else ())
    assert done.kept.tolist() == KEPT
    assert done.map[done.kept].tolist() == list(range(len(KEPT)))
    assert (done.report.exact, done.report.compared) == (True, 1)
    old, new = Session(ir.from_proto(proto)), Session(done.model)
    (before,), (after,) = (
        tuple(s({"ids": i}).values()) for s, i in ((old, TEXT), (new, done.map[TEXT]))
    )
    assert np.array_equal(before if head == "none" else before[..., KEPT], after)
    stored = {v.name: v.const_value for v in done.model.graph.initializers.values()}
    assert stored["table"].shape == (len(KEPT), WIDTH)
    assert (
        sum(len(KEPT) in t.shape for t in stored.values() if t.dtype == ir.DataType.FLOAT)
        == ({"tied": 2, "own": 3, "none": 1}[head])
    )


def test_others_become_the_unknown_id_or_are_refused() -> None:
    text = TEXT.copy()
    text[0, 0] = 11
    done = pruned(model("none"), unknown=3)
    assert done.map[11] == done.map[3]
    refusing = pruned(model("none"), unknown=None)
    with pytest.raises(SessionError, match="out of data bounds"):
        Session(refusing.model)({"ids": refusing.map[text]})


def test_an_id_that_the_graph_looks_for_stays_and_is_found() -> None:
    proto = model("none", padded=2)
    with pytest.raises(InputError, match="looks for id 2: keep it"):
        pruned(proto)
    done = pruned(proto, keep=[2])
    old, new, text = Session(ir.from_proto(proto)), Session(done.model), np.array([[2, 5, 2]])
    assert np.array_equal(
        *(s({"ids": i})["logits"] for s, i in ((old, text), (new, done.map[text])))
    )


def test_what_mixes_all_ids_stays_whole_or_refuses() -> None:
    done = pruned(model("own", last="Softmax"), heads=["logits"])
    assert list(done.report.whole) == ["logits"]
    assert done.report.exact
    with pytest.raises(InputError, match="table: is shared with a head that stays"):
        pruned(model("tied", last="Softmax"))


def test_an_output_of_as_many_features_is_not_cut() -> None:
    """Equal sizes prove nothing: it shares no table with the ids."""
    done = pruned(model("own"))
    assert done.report.heads == ()
    assert "shares no table: --head says it is so" in done.report.whole["y"]
    assert list(Session(done.model)({"ids": done.map[TEXT]})["y"].shape) == [2, 3, IDS]


def test_outputs_that_may_be_of_ids_are_told() -> None:
    done = pruned(model("own", last="ArgMax"))
    assert "numbers that are ids are the original's" in done.report.whole["logits"]


def test_without_data_nothing_is_called_equal() -> None:
    done = pruned(model("none"), data=None, keep=[1, 2])
    assert (done.report.exact, done.report.compared) == (False, 0)
    assert done.told()["outputs"] == "not compared"


@pytest.mark.parametrize(
    ("expected", "found", "worst"),
    [
        ([np.nan, 1.0], [5.0, 1.0], np.inf),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([-np.inf, 2.0], [-np.inf, 2.5], 0.25),
        ([-np.inf, 2.0], [-np.inf, 2.0], 0.0),
        ([np.nan, 2.0], [np.nan, 3.0], 0.5),
    ],
)
def test_what_is_no_number_differs_unless_it_is_the_same(expected, found, worst) -> None:
    assert _difference(np.array(expected), np.array(found)) == worst


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ids": "x"}, "x: the model has no such input"),
        ({"heads": ["z"]}, "--head z: the model has no such output"),
        ({"keep": [20]}, "ids: has ids from 0 to 19, there is no 20"),
        ({"data": [{"ids": TEXT + 5}]}, "ids: has ids from 0 to 19, the data has others"),
        ({"data": None}, "which ids stay is told by data, keep or both"),
    ],
)
def test_ids_that_are_not_there_are_one_line(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        pruned(model(), **options)


def test_numbers_that_are_no_ids_are_left() -> None:
    small = Small()
    ids = small.given("ids", TEXT)
    x = small.op("Gather", small.weight(IDS, WIDTH), ids)
    y = small.op("Mul", x, small.op("Unsqueeze", small.op("Cast", ids, to=1), small.ints(2)))
    with pytest.raises(
        InputError, match=r"no input holds token ids: ids: Cast .* reads more of them"
    ):
        pruned(small.build(y))


def test_ids_are_written_as_ranges_or_in_a_file(tmp_path: Path) -> None:
    assert parse_ids("0-3, 9") == [0, 1, 2, 3, 9]
    (tmp_path / "kept.txt").write_text("4\n8 9\n")
    assert parse_ids(str(tmp_path / "kept.txt")) == [4, 8, 9]
    with pytest.raises(InputError, match=r"--keep none.txt: "):
        parse_ids("none.txt")
    for wrong in ("3-1", "-2", "a", "0-99999999999"):
        with pytest.raises(InputError, match=r"--keep .*expected ids"):
            parse_ids(wrong)


def test_the_language_model_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    command = ["vocabulary", str(stdlib_lm.MODEL), "-o", str(out), "--unknown", "0", "--json"]
    found = CliRunner().invoke(app, [*command, "--data", "models.stdlib_lm:calibration"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["before"] == stdlib_lm.TOKENS
    assert report["used"] <= report["after"] < report["before"]
    assert report["heads"] == ["logits"]
    assert report["output_bytes"] == out.stat().st_size < report["source_bytes"]
    with np.load(f"{out}.ids.npz") as ids:
        kept, mapped = ids["kept"], ids["map"]
    feeds = next(iter(stdlib_lm.calibration()))
    before, after = Session(lwqc.load(stdlib_lm.MODEL)), Session(lwqc.load(out))
    expected = before(feeds)["logits"][..., kept]
    assert np.array_equal(expected, after({"input_ids": mapped[feeds["input_ids"]]})["logits"])


def test_nothing_is_written_over_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    for options in (["-o", str(path)], ["-o", str(tmp_path / "o.onnx"), "--map", "ids.json"]):
        found = CliRunner().invoke(app, ["vocabulary", str(path), *options, "--keep", "0-9"])
        assert isinstance(found.exception, InputError)
    assert sorted(tmp_path.iterdir()) == [path]
