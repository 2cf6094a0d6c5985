"""Every architecture of the zoo compresses, loads and runs, in uniform forms, and in torch."""

from itertools import combinations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.decide.compress import compress_version, open_version
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import uniform_recipe
from lwqc.runtime.session import Session
from tests.conftest import ALL, ZOO
from tests.zoo.materialize import materialize, sample_inputs

FORMS = [(8, "none"), (8, "dynamic"), (8, "static"), (4, "none")]
PAIRS = list(combinations(FORMS, 2))


def forms_of(skeleton):
    """Two forms for each architecture, every pair as often; $LWQC_TEST_ALL for all of them."""
    return FORMS if ALL else PAIRS[ZOO.index(skeleton) % len(PAIRS)]


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return (a @ b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)


def check_module(model, feeds, reference):
    """The same numbers from torch. Moving weights by one ulp gives up to 1e-5."""
    torch = pytest.importorskip("torch", reason="needs the extra lwqc[torch]")
    from lwqc.learn.to_torch import module_of

    with torch.no_grad():
        found = module_of(model)(**feeds)
    for name, expected in reference.items():
        assert found[name].dtype == torch.from_numpy(expected).dtype
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )


@pytest.mark.slow
def test_every_form(skeleton):
    proto = materialize(skeleton)
    inputs = {v.name for v in proto.graph.input}
    feeds = {n: v for n, v in sample_inputs(skeleton, batch=1).items() if n in inputs}
    built = ir.serde.deserialize_model(proto)
    work = open_version(built, data=[feeds], name=skeleton.stem)
    reference = Session(built)(feeds)
    check_module(built, feeds, reference)
    for bits, activations in forms_of(skeleton):
        done = compress_version(work, Goals(), uniform_recipe(bits, activations, "minmax"))
        assert done.decisions.quantize
        left = {s.name for s in work.analysis.sites} - set(done.decisions.quantize)
        assert left <= set(done.decisions.kept_float)
        found = Session(done.model)(feeds)
        for name, expected in reference.items():
            assert found[name].shape == expected.shape
            assert np.isfinite(found[name]).all()
        if bits == 8 and activations == "none":
            onnx.checker.check_model(ir.serde.serialize_model(done.model))
            # Random weights amplify noise (EfficientNet most: 0.96); trained ones reach 0.999.
            assert min(cosine(found[n], e) for n, e in reference.items()) > 0.95
