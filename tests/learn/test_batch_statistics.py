"""Normalisation by the statistics of each batch while a module trains."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from lwqc.errors import InputError  # noqa: E402
from lwqc.learn.batch_statistics import saw_no_data  # noqa: E402
from lwqc.learn.to_torch import module_of, write_back  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import Session  # noqa: E402
from tests.learn.test_to_torch import stored, x  # noqa: E402

TEXT = """g (float[N,3,5] x) => (float[N,4,5] y) { c = Conv(x, w)
    y = BatchNormalization<epsilon = 0.001, momentum = 0.8>(c, s, b, m, v) }"""
NEW = {"m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
USED = {"m": x(4, seed=3), "v": np.abs(x(4, seed=4)) + 1}


def network(text=TEXT, **statistics):
    return stored(text, w=x(4, 3, 1), s=1 + x(4, seed=1), b=x(4, seed=2), **(statistics or USED))


def reference(model):
    """What torch's own layers of the same numbers are."""
    arrays = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    norm = torch.nn.BatchNorm1d(4, eps=0.001, momentum=0.2)
    with torch.no_grad():
        for name, target in (
            ("s", norm.weight), ("b", norm.bias), ("m", norm.running_mean), ("v", norm.running_var)
        ):  # fmt: skip
            target.copy_(torch.from_numpy(np.array(arrays[name])))
    weight = torch.from_numpy(np.array(arrays["w"])).requires_grad_()
    return norm, weight


def test_training_is_that_of_torchs_own_layer_and_comes_back_into_the_file():
    model = network()
    module, (norm, weight) = module_of(model, batch_statistics=True), reference(model)
    for step in range(3):
        given = torch.from_numpy(x(6, 3, 5, seed=10 + step))
        wanted = norm(torch.nn.functional.conv1d(given, weight))
        made = module(given)["y"]
        torch.testing.assert_close(made, wanted)
    made.square().mean().backward()
    wanted.square().mean().backward()
    torch.testing.assert_close(module.w.grad, weight.grad)
    torch.testing.assert_close(module.s.grad, norm.weight.grad)
    trained = write_back(module, model)
    arrays = {n: v.const_value.numpy() for n, v in trained.graph.initializers.items()}
    np.testing.assert_allclose(arrays["m"], norm.running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arrays["v"], norm.running_var, rtol=1e-5)
    module.eval()
    found = Session(trained)({"x": x(2, 3, 5)})["y"]
    np.testing.assert_allclose(found, module(x(2, 3, 5))["y"].detach(), rtol=1e-4, atol=1e-5)


def test_eval_uses_and_keeps_what_the_file_says():
    model = network()
    module = module_of(model, batch_statistics=True).eval()
    torch.testing.assert_close(module(x(2, 3, 5))["y"], module_of(model)(x(2, 3, 5))["y"])
    assert io.to_bytes(write_back(module, model)) == io.to_bytes(model)


def test_statistics_are_not_trained_even_where_everything_is():
    module = module_of(network(), "all", batch_statistics=True)
    assert {n for n, _ in module.named_parameters()} == {"w", "s", "b"}
    assert set(module.untrained.values()) == {"a statistic, which batches change"}


def test_a_copy_has_a_mode_and_statistics_of_its_own():
    module = module_of(network(), batch_statistics=True)
    other = copy.deepcopy(module).eval()
    module(x(6, 3, 5))
    torch.testing.assert_close(other(x(2, 3, 5))["y"], module_of(network())(x(2, 3, 5))["y"])
    torch.testing.assert_close(other.m, torch.from_numpy(USED["m"]))
    assert not torch.equal(module.m, other.m)


def test_statistics_that_two_share_or_that_are_computed_are_refused():
    twice = TEXT.replace("y = Batch", "d = BatchNormalization(c, s, b, m, v) y = Batch")
    with pytest.raises(InputError, match="it shares statistics with BatchNormalization d"):
        module_of(network(twice), batch_statistics=True)
    computed = TEXT.replace("y = Batch", "n = Abs(m) y = Batch").replace("b, m, v", "b, n, v")
    with pytest.raises(InputError, match="its statistics are not stored"):
        module_of(network(computed), batch_statistics=True)


def test_a_model_that_saw_no_data_is_known_by_its_statistics():
    assert saw_no_data(network(**NEW))
    assert not saw_no_data(network())
    twice = TEXT.replace("y = Batch", "d = BatchNormalization(c, s, b, m, v) y = Batch")
    assert not saw_no_data(network(twice, **NEW))
    assert not saw_no_data(network(**{**NEW, "v": USED["v"]}))
    assert not saw_no_data(
        stored("g (float[N,4] x) => (float[N,2] y) { y = MatMul(x, w) }", w=x(4, 2))
    )
