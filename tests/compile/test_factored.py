"""Tables of embeddings as products of two factors: best of their rank, tied heads, codes, plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import lwqc
from lwqc.compile.steps.factored import factored
from lwqc.decide.compress import open_version
from lwqc.decide.embedding_ranks import choose_ranks
from lwqc.decide.search.control import SearchControl
from lwqc.decide.strategy import row
from lwqc.errors import InputError
from lwqc.plans.goals import Goals
from lwqc.plans.plan import FactoredTable, Plan
from lwqc.plans.recipe import EmbeddingRecipe, find, with_embedding_rank
from lwqc.runtime.session import Session
from tests.small_models import Small
from tests.tiny_vit import PATCHES, TinyVit, classified
from tests.tiny_vit import WIDTH as VIT

VOCABULARY, WIDTH, RANK = 400, 48, 16
IDS = [
    {"ids": np.random.default_rng(i).zipf(1.5, (2, 32)).clip(0, VOCABULARY - 1)} for i in range(6)
]


def written(path: Path, *, tied: bool = True, true_rank: int = WIDTH) -> Path:
    """Rows of a table, a layer, and a head that shares the table or has its own."""
    small = Small()
    ids = small.given("ids", IDS[0]["ids"], (("batch", 2), ("tokens", 32)))
    rows = small.rng.standard_normal((VOCABULARY, true_rank))
    full = rows @ small.rng.standard_normal((true_rank, WIDTH)) / true_rank**0.5
    table = small.keep(full.astype(np.float32), "table")
    x = small.op("Gather", table, ids)
    x = small.op("Relu", small.linear(x, WIDTH, WIDTH, name="layer"))
    head = small.op("Transpose", table, perm=[1, 0]) if tied else small.weight(WIDTH, 20)
    onnx.save(small.build(small.op("MatMul", x, head, name="y")), path)
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "alone"])
def low(request, tmp_path_factory) -> Path:
    """A table of rank 16 as it is stored."""
    path = tmp_path_factory.mktemp("low") / "m.onnx"
    return written(path, tied=request.param, true_rank=RANK)


def outputs(model) -> np.ndarray:
    return Session(model)(IDS[0])["y"]


def test_a_table_of_that_rank_is_the_same_in_fewer_bytes(low: Path, tmp_path: Path) -> None:
    done = lwqc.compress(low, recipe="clean", embedding_rank=RANK, data=IDS)
    (entry,) = done.plan.factor
    assert entry == FactoredTable(table="table", rank=RANK)
    report = done.save(tmp_path / "small.onnx")
    np.testing.assert_allclose(
        outputs(lwqc.load(tmp_path / "small.onnx")), outputs(lwqc.load(low)), atol=1e-3
    )
    assert report.output_bytes < 0.8 * report.source_bytes  # a tied one is stored both ways
    again = lwqc.apply(low, done.plan, data=IDS)
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_factors_take_number_formats(low: Path) -> None:
    done = lwqc.quantize(low, bits=8, embedding_rank="33%", data=IDS)
    factors = {"table", "table/directions"}
    assert factors <= done.plan.quantize.keys()
    error = np.square(outputs(done.model) - outputs(lwqc.load(low))).mean()
    assert error < 1e-3 * np.square(outputs(lwqc.load(low))).mean()


def test_a_search_under_a_budget_comes_after_it(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", true_rank=RANK)
    options = {"embedding_rank": RANK, "data": IDS, "effort": "low"}
    done = lwqc.compress(path, max_size=0.3, **options)
    assert [entry.rank for entry in done.plan.factor] == [RANK]
    report = done.save(tmp_path / "small.onnx")
    assert report.output_bytes <= 0.3 * report.source_bytes
    assert report.drop < 0.01
    recipe = with_embedding_rank(find("auto"), RANK)
    with pytest.raises(InputError, match="make one model: leave out --pareto"):
        next(row(done.work, Goals(max_size=0.3), recipe, SearchControl(), 2))


def test_rows_that_the_data_takes_lose_less(tmp_path: Path) -> None:
    work = open_version(written(tmp_path / "m.onnx", tied=False), data=IDS)
    taken = np.unique(np.concatenate([feeds["ids"] for feeds in IDS]))
    lost = {}
    for calibration in ("data", "none"):
        entry = FactoredTable(table="table", rank=RANK, calibration=calibration)
        made = factored(work, [entry])
        rows, spread = (made.weights.weight(n) for n in ("table", "table/directions"))
        table = work.weights.weight("table")
        squares = np.square(table - rows @ spread.T).sum(1)
        lost[calibration] = squares[taken].sum(), squares.sum()
    assert lost["data"][0] < lost["none"][0]
    assert lost["data"][1] > lost["none"][1]


def test_without_data_all_rows_count_alike_which_is_told(low: Path) -> None:
    done = lwqc.compress(low, recipe="clean", embedding_rank=RANK)
    assert [entry.calibration for entry in done.plan.factor] == ["none"]
    assert any("all rows of a table of embeddings count alike" in n for n in done.plan.notes)


@pytest.mark.parametrize(
    ("rank", "why"),
    [
        (47, r"table: factors of rank 47 are no smaller than 400 x 48"),
        (0, r"expected a count or a share below 1"),
        (2.5, r"expected a count or a share below 1"),
        ("100%", r"expected a count or a share below 1"),
        ("200%", r"expected a count or a share below 1"),
    ],
)
def test_ranks_that_cannot_be_are_one_line(low: Path, rank: float | str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        lwqc.compress(low, recipe="clean", embedding_rank=rank, data=IDS)


@dataclass
class Worded(TinyVit):
    """Tokens are ids of a table of 500 rows."""

    def build(self) -> onnx.ModelProto:
        """The model."""
        s = self.small
        ids = s.given("ids", self.ids(0), (("batch", 2), PATCHES))
        x = s.linear(s.op("Gather", s.weight(500, VIT, name="table"), ids), VIT, VIT)
        sizes = s.op("Concat", s.op("Shape", x, start=0, end=1), s.ints(self.always, VIT), axis=0)
        first = s.op("Expand", s.weight(1, self.always, VIT, name="first"), sizes)
        x = s.op("Concat", first, x, axis=1)
        x = s.op("Add", x, s.weight(1, self.tokens, VIT, name="places"))
        for number in range(self.layers):
            x = self.layer(x, number)
        return s.build(classified(s, self.norm(x)))

    def ids(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 500, (2, PATCHES))


def test_a_plan_with_fewer_tokens_too_gives_the_same_bytes(tmp_path: Path) -> None:
    net = Worded()
    onnx.save(net.build(), tmp_path / "m.onnx")
    data = [{"ids": net.ids(i)} for i in range(2)]
    done = lwqc.compress(
        tmp_path / "m.onnx", recipe="clean", tokens=0.5, embedding_rank=4, data=data
    )
    assert done.plan.tokens
    assert done.plan.factor
    done.save(tmp_path / "a.onnx")
    lwqc.apply(tmp_path / "m.onnx", done.plan, data=data).save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_table_that_is_stored_transposed_stays(tmp_path: Path) -> None:
    small = Small()
    ids = small.given("ids", IDS[0]["ids"])
    stored = small.weight(WIDTH, VOCABULARY, name="turned")
    x = small.op("Gather", small.op("Transpose", stored, perm=[1, 0]), ids)
    onnx.save(small.build(small.linear(x, WIDTH, 8)), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="turned: is stored transposed"):
        lwqc.compress(tmp_path / "m.onnx", recipe="clean", embedding_rank=4, data=IDS)


def test_only_compress_takes_the_section(low: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    lines = ['name = "own"', 'description = "own"', 'allocator = "channels"']
    own.write_text("\n".join([*lines, "[prune]", "ratio = 0.3", "[embeddings]", "rank = 4"]))
    with pytest.raises(InputError, match=r"has \[embeddings\]: lwqc compress does that"):
        lwqc.prune(low, recipe=str(own), data=IDS)
    with pytest.raises(InputError, match=r"recipe mc-smoe has \[experts\]"):
        lwqc.drop_layers(low, recipe="mc-smoe", branches=1, data=IDS)


def test_tables_that_are_read_otherwise_stay_with_the_reason(tmp_path: Path) -> None:
    small = Small()
    ids = small.given("ids", IDS[0]["ids"])
    table = small.weight(VOCABULARY, WIDTH, name="table")
    both = small.weight(VOCABULARY, WIDTH, name="both")
    x = small.op("Gather", table, ids)
    scores = small.op("MatMul", x, small.weight(WIDTH, VOCABULARY))
    mixed = small.op("MatMul", small.op("Softmax", scores), both)
    y = small.op("Add", small.op("Gather", both, ids), mixed, name="y")
    onnx.save(small.build(y), tmp_path / "m.onnx")
    work = open_version(tmp_path / "m.onnx", data=IDS[:1])
    entries, left = choose_ranks(work, EmbeddingRecipe(rank=0.25))
    assert [entry.table for entry in entries] == ["table"]
    assert "both orientations" in left["both"]
    plan = Plan.model_validate(
        {"source": {}, "factor": [{"table": "w2", "rank": 4}, {"table": "both", "rank": 4}]}
    )
    with pytest.raises(InputError, match="w2: cannot be narrowed: no rows of it are taken by ids"):
        lwqc.apply(tmp_path / "m.onnx", plan, data=IDS[:1], allow_drift=True)
