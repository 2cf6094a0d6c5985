"""Gradients that keep less, and weights that move by thin matrices: the same model in the end."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.compile import fitted  # noqa: E402
from lwqc.errors import InputError  # noqa: E402
from lwqc.learn.less_memory import kept_bytes, segmented  # noqa: E402
from lwqc.learn.to_torch import module_of  # noqa: E402
from lwqc.model.tensor_bytes import read_array  # noqa: E402
from lwqc.model.weights import stored_float_tensors  # noqa: E402
from tests.compile.test_learned import error, feeds, original  # noqa: E402


def noisy(seed=1):
    model, rng = original().clone(), np.random.default_rng(seed)
    for value in stored_float_tensors(model.graph):
        array = read_array(value.const_value)
        moved = array * (1 + 0.3 * rng.standard_normal(array.shape).astype(np.float32))
        value.const_value = ir.tensor(moved, name=value.name)
    return model


def gradients(module):
    out = module(**feeds(1)[0])["y"]
    out.square().sum().backward()
    return out.detach(), [p.grad for p in module.parameters()]


def saved_bytes(module):
    """What is kept between the way there and the way back, each storage once."""
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(**feeds(1, rows=4096)[0])
    return sum(held.values())


def test_segments_give_the_same_gradients_and_keep_less():
    whole, cut = (module_of(original()) for _ in range(2))
    cut.segments = segmented(cut)
    assert len(cut.segments) == 3
    (a, of_whole), (b, of_cut) = gradients(whole), gradients(cut)
    assert torch.equal(a, b)
    for one, two in zip(of_whole, of_cut, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert saved_bytes(cut) < 0.6 * saved_bytes(whole)


def test_little_memory_is_noticed_and_the_fit_is_the_same(monkeypatch):
    options = {"teacher": original(), "data": feeds(20), "steps": 20}
    plain = lwqc.recover(noisy(), **options)
    asked = lwqc.recover(noisy(), less_memory=True, **options)
    needed = kept_bytes(module_of(noisy()), feeds(1)[0])
    monkeypatch.setattr(fitted, "free_memory", lambda: needed)
    short = lwqc.recover(noisy(), **options)
    for done in (asked, short):
        assert error(done.model) == pytest.approx(error(plain.model), rel=1e-4)
    assert any("computed twice" in note for note in short.report.notes)
    assert not any("computed twice" in note for note in plain.report.notes)


def test_low_rank_updates_are_folded_into_weights_of_the_same_form():
    options = {"teacher": original(), "data": feeds(40), "steps": 150}
    done = lwqc.recover(noisy(), low_rank=8, **options)
    assert done.report.unchanged == ""
    assert done.report.trained == 6 * 2 * 64 * 8
    assert error(done.model) < 0.7 * error(noisy())
    before, after = (
        {v.name: read_array(v.const_value) for v in stored_float_tensors(m.graph)}
        for m in (noisy(), done.model)
    )
    for name, weight in before.items():
        singular = np.linalg.svd(after[name] - weight, compute_uv=False)
        assert singular[0] > 1e-3
        assert singular[8] < 1e-4 * singular[0]
    with pytest.raises(InputError, match="--low-rank fits the whole: leave out --parts"):
        lwqc.recover(noisy(), low_rank=8, parts="blocks", **options)
