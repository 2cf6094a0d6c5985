"""Narrower streams on real data: better than chance, priced, refused where it does not pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.compile.losses import judged_drop
from lwqc.compile.steps import slice_streams
from lwqc.compile.steps.slice_streams import slice_planned
from lwqc.decide.compress import open_version
from lwqc.decide.slice_streams import SliceOptions, choose_slices
from lwqc.errors import InputError
from lwqc.model import io
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Slice, SliceStream, prepare_slicing
from lwqc.plans.plan import Plan, SlicedStream
from lwqc.runtime.session import Session, statistics_session
from lwqc.runtime.stats.output_divergence import OutputDivergence
from models import glyphs, stdlib_lm
from tests import few_samples
from tests.passes.test_rotate_stream import decoder

MODELS = Path(__file__).parents[2] / "models"
STREAM = "decoder.embedding.weight:1"
IDS = {"ids": np.random.default_rng(3).integers(0, 50, (4, 50))}


@pytest.fixture(scope="module")
def language():
    """The decoder, calibration feeds, and its outputs on the last of them."""
    built = io.load(MODELS / "stdlib_lm.onnx")
    *feeds, test = [{k: v[:2, :128] for k, v in f.items()} for f in stdlib_lm.calibration()]
    return built, feeds, test, OutputDivergence(Session(built)(test)["logits"], "kl")


@pytest.fixture(scope="module")
def principal_loss(language):
    """A quarter less along principal components, for both forms: the models and their losses."""
    built, feeds, test, loss = language
    found = {}
    for shared in (True, False):
        slices = [SlicedStream(group=STREAM, width=144, shared=shared)]
        narrow = slice_planned(built, feeds, slices, statistics_session)
        found[shared] = narrow, loss(Session(narrow)(test)["logits"])
    return found


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-branch"])
def test_a_quarter_less_of_a_language_model(language, principal_loss, shared) -> None:
    built, _, test, loss = language
    narrow, principal = principal_loss[shared]
    onnx.checker.check_model(ir.to_proto(narrow), full_check=True)
    assert io.serialized_bytes(narrow) < io.serialized_bytes(built)
    chance, _ = prepare_pruning(built)
    rng = np.random.default_rng(0)
    slices = {
        p.group: Slice(np.linalg.qr(rng.standard_normal((p.size, p.size)))[0], 144)
        for p in prepare_slicing(chance, {STREAM: shared})
    }
    SliceStream(slices)(chance)
    assert principal < loss(Session(chance)(test)["logits"]) / 2


def glyph_work(data, **options):
    return open_version(MODELS / "glyph_vit.onnx", data=list(data), **options)


def test_a_vision_transformer_is_priced_and_planned(tmp_path) -> None:
    work = glyph_work(few_samples.glyph_calibration())
    found = choose_slices(work, SliceOptions(ratio=0.25, shared=True, recipe="slicegpt"))
    (entry,) = found.plan.slice
    assert (entry.width, entry.shared, found.note) == (72, True, "")
    assert found.plan.recipe == "slicegpt"
    assert found.after.size_bytes < 0.8 * found.before.size_bytes
    assert found.after.macs < 0.8 * found.before.macs
    assert found.before.latency_ms is not None
    narrow = slice_planned(work.model, work.job.data.fit, found.plan.slice, statistics_session)
    assert io.serialized_bytes(narrow) == found.after.size_bytes
    found.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == found.plan
    assert judged_drop(work, Session(narrow)) < 0.1


def test_a_basis_for_each_branch_keeps_more_of_the_same_width() -> None:
    work = glyph_work(glyphs.calibration(), metric=few_samples.glyph_accuracy)
    (group,) = [e.group for e in choose_slices(work, SliceOptions(ratio=0.3)).plan.slice]
    drops = []
    for shared in (False, True):
        slices = [SlicedStream(group=group, width=64, shared=shared)]
        narrow = slice_planned(work.model, work.job.data.fit, slices, statistics_session)
        drops.append(judged_drop(work, Session(narrow)))
    assert drops[0] < 0.7 * drops[1]


def test_statistics_are_those_of_what_is_narrow_already(monkeypatch) -> None:
    """As in the paper; those of the original, all taken at once, lose more."""
    work = glyph_work(few_samples.glyph_calibration())
    slices, told = [SlicedStream(group="stem.6.weight:0", width=64)], work.job.data.fit
    test = glyphs.test_feeds()[0]
    loss = OutputDivergence(work.original.session(test)["logits"], "kl")
    original, _ = slice_streams.prepared(work.model, slices)

    def narrowed() -> float:
        narrow = slice_planned(work.model, told, slices, statistics_session)
        return loss(Session(narrow)(test)["logits"])

    one_by_one = narrowed()
    collected = slice_streams.collect
    monkeypatch.setattr(slice_streams, "collect", lambda model, *rest: collected(original, *rest))
    assert one_by_one < 0.95 * narrowed()


def test_refused_where_it_does_not_pay() -> None:
    """Matrices [56, 56] in four shortcuts weigh more than eight channels of layers 8 wide."""
    built = decoder(hidden=8, layers=4)
    work = open_version(built, data=[IDS])
    found = choose_slices(work, SliceOptions(ratio=0.1))
    assert found.plan.slice == ()
    assert found.after.size_bytes > found.before.size_bytes
    assert found.after.macs > found.before.macs
    assert found.after.latency_ms is None
    assert f"{found.after.size_bytes:,} stored bytes" in found.note
    assert f"{found.after.macs:,} MACs" in found.note
    assert choose_slices(work, SliceOptions(ratio=0.1, shared=True)).plan.slice


def test_without_data_directions_come_from_random_inputs() -> None:
    found = choose_slices(open_version(decoder()), SliceOptions(ratio=0.25))
    assert {entry.calibration for entry in found.plan.slice} == {"random"}


def test_models_without_streams() -> None:
    feeds = list(few_samples.glyph_calibration())
    work = open_version(MODELS / "glyph_resnet.onnx", data=feeds)
    with pytest.raises(InputError, match="has no residual stream that could be sliced; "):
        choose_slices(work, SliceOptions(ratio=0.25))
    built = decoder()
    measured = {o.name: o for node in built.graph for o in node.outputs}["x1"]
    length = ir.node("ReduceL2", [measured, built.graph.initializers["last"]], name="length")
    built.graph.append(length)
    length.outputs[0].name, length.outputs[0].type = "l", ir.TensorType(ir.DataType.FLOAT)
    built.graph.outputs.append(length.outputs[0])
    with pytest.raises(InputError, match="could be sliced; table:1: ReduceL2 length adds over"):
        choose_slices(open_version(built, data=[IDS]), SliceOptions(ratio=0.25))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "above 0 and below 1"),
        ({"ratio": 1.0}, "above 0 and below 1"),
        ({"ratio": 0.2, "round_to": 0}, "at least 1"),
        ({"ratio": 0.95}, "leaves no multiple of 8"),
        ({"ratio": 0.2, "groups": ("z:0",)}, "no such stream"),
    ],
)
def test_errors_say_what_is_wrong(options, message) -> None:
    work = open_version(decoder(), data=[IDS])
    with pytest.raises(InputError, match=message):
        choose_slices(work, SliceOptions(**options))


def test_plans_that_do_not_fit() -> None:
    wide = [SlicedStream(group="table:1", width=72)]
    with pytest.raises(InputError, match="has 64 channels, cannot keep 72"):
        slice_planned(decoder(), [IDS], wide, statistics_session)
    narrow = [SlicedStream(group="table:1", width=32)]
    with pytest.raises(InputError, match="no sample"):
        slice_planned(decoder(), [], narrow, statistics_session)
    broken = decoder()
    table = broken.graph.initializers["table"]
    table.const_value = ir.tensor(np.full((50, 64), np.inf, np.float32), name="table")
    with pytest.raises(InputError, match="not finite"):
        slice_planned(broken, [IDS], narrow, statistics_session)
