"""Slicing a stream leaves the outputs where nothing of the stream goes, and the norms' scale."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.compile.steps.slice_streams import slice_planned
from lwqc.errors import InputError
from lwqc.graph.groups import find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.slice_stream import Slice, SliceStream, prepare_slicing
from lwqc.plans.plan import SlicedStream
from lwqc.runtime.session import statistics_session
from lwqc.testing.oracles import difference, session
from tests.conftest import ZOO
from tests.graph.test_zoo_groups import MODELS, drawn
from tests.passes.test_rotate_stream import decoder
from tests.zoo.materialize import materialize, sample_inputs

# Float32 noise of these models is about 1e-6, and every weight is rounded twice more.
TOLERANCE = 1e-5
FORMS = pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-branch"])
SUBJECTS = [
    *("llama_past.legacy", "gpt2.dynamo", "deit_tiny_distilled_patch16_224.dynamo"),
    *("convformer_s18.dynamo", "glyph_vit", "stdlib_lm"),
]
IDS = {"ids": np.random.default_rng(3).permuted(np.tile(np.arange(50), (4, 1)), axis=1)}


@lru_cache(maxsize=64)
def orthogonal(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def streams_of(built: ir.Model) -> list[str]:
    prepared, shapes = prepare_pruning(built)
    return [s.group.name for s in find_streams(find_groups(prepared, shapes)).streams]


def sliced(built: ir.Model, width: int, *, shared: bool, ids=IDS) -> ir.Model:
    slices = [SlicedStream(group=streams_of(built)[0], width=width, shared=shared)]
    return slice_planned(built, [ids], slices, statistics_session)


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request):
    path = next((p for p in ZOO if p.stem == request.param), None)
    proto = materialize(path) if path else onnx.load(MODELS / f"{request.param}.onnx")
    feeds = sample_inputs(path) if path else drawn(proto, batch=2)
    built = ir.from_proto(proto)
    return built, feeds, session(built)(feeds), streams_of(built)


@FORMS
def test_all_directions_leave_the_outputs_and_fewer_run(subject, shared) -> None:
    built, feeds, expected, names = subject
    copy, _ = prepare_pruning(built)
    parts = prepare_slicing(copy, dict.fromkeys(names, shared))
    assert (len(parts) == len(names)) == shared
    assert difference(expected, session(copy)(feeds)) <= TOLERANCE
    for kept in (1.0, 0.75):
        cut = copy.clone()
        slices = {
            p.group: Slice(orthogonal(p.size, i), int(p.size * kept)) for i, p in enumerate(parts)
        }
        assert SliceStream(slices)(cut).modified
        onnx.checker.check_model(ir.to_proto(cut), full_check=True)
        assert (difference(expected, session(cut)(feeds)) <= TOLERANCE) == (kept == 1)


def low_rank(rank: int, scale: float = 1.0, **options) -> ir.Model:
    """A decoder that writes into `rank` directions only; small ones make epsilon count."""
    built = decoder(**options)
    size = options.get("size", 64)
    onto = orthogonal(size, 9)[:, :rank]
    for name, value in built.graph.initializers.items():
        if name == "table" or name.startswith("down"):
            old = value.const_value.numpy()
            new = (old @ onto @ onto.T * scale).astype(old.dtype)
            value.const_value = ir.tensor(new, name=name)
    return built


@FORMS
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["rms", "layer", "decomposed"])
def test_unused_directions_go_for_free(norm, tied, shared) -> None:
    """Two fewer than are used show: the control."""
    rank = 24
    built = low_rank(rank, norm=norm, tied=tied)
    expected = session(built)(IDS)
    kept, short = (sliced(built, w, shared=shared) for w in (rank, rank - 2))
    onnx.checker.check_model(ir.to_proto(kept), full_check=True)
    assert difference(expected, session(kept)(IDS)) <= TOLERANCE
    assert difference(expected, session(short)(IDS)) > 1000 * TOLERANCE


@FORMS
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_epsilon_keeps_its_weight(norm, shared) -> None:
    """A stream whose mean square is as large as epsilon: 1e-6, for layer norms 1e-5."""
    built = low_rank(24, scale=1.5e-3 if norm == "rms" else 5e-3, norm=norm)
    expected = session(built)(IDS)
    assert difference(expected, session(sliced(built, 24, shared=shared))(IDS)) <= TOLERANCE


@FORMS
def test_an_embedding_that_is_the_head_too(shared) -> None:
    """With one basis and no gain it stays one tensor, and the head undoes the scale."""
    built = low_rank(24, tied=True)
    for name, value in built.graph.initializers.items():
        if name.startswith("g"):
            ones = np.ones_like(value.const_value.numpy())
            value.const_value = ir.tensor(ones, name=name)
    expected = session(built)(IDS)
    narrow = sliced(built, 24, shared=shared)
    assert difference(expected, session(narrow)(IDS)) <= TOLERANCE
    sizes = [v.const_value.shape for v in narrow.graph.initializers.values()]
    assert sizes.count((50, 24)) == (1 if shared else 2)


@FORMS
def test_half_precision(shared) -> None:
    """Half a percent: float16 has eleven bits, and every weight is rounded twice more."""
    built = low_rank(24, norm="layer", dtype=np.float16)
    expected = session(built)(IDS)
    assert difference(expected, session(sliced(built, 24, shared=shared))(IDS)) <= 5e-3


@FORMS
def test_same_plan_same_bytes(shared) -> None:
    built = low_rank(24, norm="layer", tied=True)
    before = ir.to_proto(built).SerializeToString(deterministic=True)
    made = [
        ir.to_proto(sliced(built, 16, shared=shared)).SerializeToString(deterministic=True)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert ir.to_proto(built).SerializeToString(deterministic=True) == before


def test_shortcuts_get_matrices_of_the_new_width() -> None:
    narrow = sliced(decoder(layers=3), 16, shared=False)
    matrices = [v for n, v in narrow.graph.initializers.items() if n.endswith("/shortcut_weight")]
    assert [tuple(v.shape) for v in matrices] == [(16, 16)] * 3


def test_nothing_asked_nothing_done() -> None:
    assert not SliceStream({})(decoder()).modified


def test_refusals_say_why() -> None:
    with pytest.raises(InputError, match="no such stream"):
        prepare_slicing(decoder(), {"z:0": True})
    with pytest.raises(InputError, match="no such stream"):
        SliceStream({"z:0": Slice(np.eye(4), 2)})(decoder())
    built = decoder()
    values = {o.name: o for node in built.graph for o in node.outputs}
    length = ir.node("ReduceL2", [values["x1"], built.graph.initializers["last"]], name="length")
    built.graph.append(length)
    length.outputs[0].name, length.outputs[0].type = "l", ir.TensorType(ir.DataType.FLOAT)
    built.graph.outputs.append(length.outputs[0])
    with pytest.raises(InputError, match="cannot be sliced: ReduceL2 length adds over"):
        prepare_slicing(built, {"table:1": True})
