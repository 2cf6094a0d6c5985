"""Relevance as slopes is relevance as it is defined, layer by layer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")

from torch.nn.functional import conv2d, conv_transpose2d  # noqa: E402

import lwqc  # noqa: E402
from lwqc.decide.scores.channels.lrp import SCORES  # noqa: E402
from lwqc.learn.relevance import RULES  # noqa: E402
from lwqc.learn.to_torch import module_of  # noqa: E402
from tests.decide.scores.test_gradient_scores import (  # noqa: E402
    MODELS,
    attention,
    facts_of,
    feeds,
    network,
)
from tests.learn.test_to_torch import stored, x  # noqa: E402

NAMES = {"lrp": "z-plus", "lrp-epsilon": "epsilon", "lrp-alpha-beta": "alpha-beta"}


def back(value, weight, relevance, rule, forward, backward, bias=0.0):
    """Relevance of a layer's input by that of its output, as the rules are defined."""
    if rule == "epsilon":
        made = forward(value, weight) + bias
        return value * backward(relevance / (made + 1e-6 * torch.sign(made)), weight)
    above, below = value.clamp(min=0), value.clamp(max=0)
    up, down = weight.clamp(min=0), weight.clamp(max=0)

    def share(one, other):
        ratio = relevance / (forward(above, one) + forward(below, other))
        ratio = torch.where(torch.isfinite(ratio), ratio, 0)
        return above * backward(ratio, one) + below * backward(ratio, other)

    return share(up, down) if rule == "z-plus" else 2 * share(up, down) - share(down, up)


def layers():
    """forward and backward of the layers of `network`."""
    dense = (lambda v, w: v @ w.T, lambda r, w: r @ w)
    first = (lambda v, w: conv2d(v, w, padding=1), lambda r, w: conv_transpose2d(r, w, padding=1))
    grouped = (
        lambda v, w: conv2d(v, w, padding=1, groups=4),
        lambda r, w: conv_transpose2d(r, w, padding=1, groups=4),
    )
    return dense, first, grouped, (conv2d, conv_transpose2d)


def by_hand(given, weights, rule):
    """Relevance of the input, and of what each layer reads by its weight, [samples, channels]."""
    dense, first, grouped, narrow = layers()
    w1, w2, w3, w4, w5 = weights
    b = first[0](given, w1).tanh()
    d = narrow[0](b, w2).tanh()
    e = b + d
    h = grouped[0](e, w3).tanh()
    n = h.mean((2, 3))
    y = n @ w4.T + w5
    told = torch.zeros_like(y).scatter_(1, y.argmax(1, True), y.amax(1, True))
    rn = back(n, w4, told, rule, *dense, bias=w5)
    rh = h / 16 * (rn / n)[:, :, None, None]
    re = back(e, w3, rh, rule, *grouped)
    rb = back(b, w2, d / e * re, rule, *narrow)
    read = {"w2": rb.sum((2, 3)), "w3": re.sum((2, 3)), "w4": rn}
    return back(given, w1, b / e * re + rb, rule, *first), read


@pytest.mark.parametrize("rule", RULES)
def test_relevance_is_as_defined_through_groups_and_a_residual_sum(rule):
    model, data = network(), feeds(3, 4, 4)
    weights = [
        torch.from_numpy(np.array(model.graph.initializers[f"w{i}"].const_value.numpy())).double()
        for i in range(1, 6)
    ]
    images = torch.from_numpy(np.concatenate([f["x"] for f in data]))
    wanted, read = by_hand(images.double(), weights, rule)
    given = images.clone().requires_grad_()
    module_of(model, rule=rule)(given)["y"].amax(1).sum().backward()
    scale = float(wanted.abs().max())
    torch.testing.assert_close((given * given.grad).double(), wanted, rtol=2e-3, atol=2e-4 * scale)
    name = next(name for name, r in NAMES.items() if r == rule)
    for facts in facts_of(model, data, loss=None).values():
        # The channels that w3 reads, in groups, are those that w1 makes.
        sources = {"w2": ("w2", 1), "w3": ("w1", 0), "w4": ("w4", 1)}
        relevance = np.zeros((len(images), facts.group.size))
        for reader in facts.readers:
            source = sources[reader.operand.weight.name]
            (place,) = (o for o in facts.group.weights if (o.name, o.axis) == source)
            channels = read[reader.operand.weight.name].numpy()
            for channel, owner in enumerate(facts.group.owner(place)):
                relevance[:, owner] += channels[:, channel]
        found = SCORES[name].importance(facts)
        np.testing.assert_allclose(found, np.abs(relevance).mean(0), rtol=5e-3)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_computed_stays_as_it_is(name, rule):
    make, shape = MODELS[name]
    given = feeds(*shape)[0]["x"]
    torch.testing.assert_close(
        module_of(make(), rule=rule)(given)["y"],
        module_of(make())(given)["y"],
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("rule", RULES)
def test_products_share_and_activations_and_norms_pass_on_all(rule):
    model = stored(
        """g (float[N,4] a, float[N,4] b) => (float[N,4] y) {
        s = Sigmoid(a) n = LayerNormalization(b, g, t) y = Mul(s, n) }""",
        g=x(4, seed=3), t=x(4, seed=4),
    )  # fmt: skip
    a, b = (torch.from_numpy(x(5, 4, seed=i)).requires_grad_() for i in (1, 2))
    y = module_of(model, rule=rule)(a, b)["y"]
    y.sum().backward()
    torch.testing.assert_close(a * a.grad, y / 2)
    torch.testing.assert_close(b * b.grad, y / 2)


def test_the_recipe_prunes_heads_and_takes_what_is_to_be_explained():
    data = feeds(4, 6)
    done = lwqc.prune(attention(), recipe="lrp", ratio=0.3, data=data)
    assert done.plan.prune.units
    scores = []
    for explained in (0, 1):
        facts = facts_of(
            network(), feeds(3, 4, 4), lambda outputs, given, e=explained: outputs["y"][:, e].sum()
        )
        scores.append(SCORES["lrp"].importance(next(iter(facts.values()))))
    assert np.abs(scores[0] - scores[1]).max() > 0.1 * scores[0].max()
