"""Taylor by one backward pass is Taylor by difference quotients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

import lwqc  # noqa: E402
from lwqc.compile.prunable import Prunable  # noqa: E402
from lwqc.decide.scores.channels.final_error import FinalError  # noqa: E402
from lwqc.decide.scores.channels.gates import Gates  # noqa: E402
from lwqc.decide.scores.channels.gradients import Gradients  # noqa: E402
from lwqc.decide.scores.channels.perturbation import taylor  # noqa: E402
from lwqc.model import io  # noqa: E402
from lwqc.runtime.session import statistics_session  # noqa: E402
from tests.build import model, normal  # noqa: E402


def network():
    """Convolutions, one of them in groups, a residual sum and a head."""
    weights = {
        "w1": normal(8, 3, 3, 3, seed=1, scale=0.3),
        "w2": normal(8, 2, 3, 3, seed=2, scale=0.3),
        "w3": normal(8, 8, 1, 1, seed=3, scale=0.3),
        "w4": normal(8, 5, seed=4, scale=0.3),
    }
    pads = {"pads": [1, 1, 1, 1]}
    rows = [
        ("Conv", ["x", "w1"], "a", pads),
        ("Tanh", ["a"], "b", {}),
        ("Conv", ["b", "w2"], "c", {**pads, "group": 4}),
        ("Tanh", ["c"], "d", {}),
        ("Conv", ["d", "w3"], "e", {}),
        ("Add", ["e", "b"], "f", {}),
        ("GlobalAveragePool", ["f"], "g", {}),
        ("Flatten", ["g"], "h", {}),
        ("MatMul", ["h", "w4"], "y", {}),
    ]
    return model(rows, weights, {"x": ["batch", 3, 8, 8]}, ["y"])


def feeds(count=2):
    return [{"x": normal(4, 3, 8, 8, seed=10 + i)} for i in range(count)]


def by_numpy(outputs, given):
    return float(np.square(outputs["y"] - 1).mean())


def by_torch(outputs, given):
    return (outputs["y"] - 1).square().mean()


by_torch.differentiable = True


def test_one_backward_pass_gives_the_slopes_of_all_channels():
    prunable = Prunable(network())
    operands = [r.operand for r in prunable.readers]
    trial = FinalError(prunable.model, operands, feeds(), statistics_session, io.read_array)
    gradients = Gradients(prunable.model, feeds(), by_torch, label="network")
    compared = 0
    for group in prunable.groups:
        readers = [r for r in prunable.readers if group.factor in set(r.features.leaves())]
        if readers:
            slow = taylor(group, readers, lambda w: trial.loss(w, by_numpy), io.read_array)
            gates = Gates(group, readers, io.read_array)
            fast = np.abs(gates.slopes(gradients.mean))
            np.testing.assert_allclose(fast, slow, rtol=0.02, atol=1e-4 * slow.max())
            compared += 1
    assert compared >= 2


def test_a_differentiable_loss_prunes_as_the_other_does():
    options = {"recipe": "spa-l2", "ratio": 0.3, "data": feeds(), "score": "taylor"}
    one, other = (lwqc.prune(network(), loss=loss, **options) for loss in (by_torch, by_numpy))
    assert one.plan.prune.units == other.plan.prune.units


def test_a_differentiable_loss_that_is_none_is_one_error():
    def numbers(outputs, given):
        return 1.0

    numbers.differentiable = True
    with pytest.raises(lwqc.InputError, match="--loss: expected a torch tensor with one number"):
        lwqc.prune(
            network(), loss=numbers, score="taylor", recipe="spa-l2", ratio=0.3, data=feeds()
        )
