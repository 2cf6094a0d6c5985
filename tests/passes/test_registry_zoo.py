"""Every pass that a text can name, on architectures of the zoo in which it finds something to do.

The architectures were found by running each pass on all of them; each has the quickest one or two.
Passes that find nothing in the zoo are on the list at the end, and tried on the traps alone.
"""

from functools import cache

import onnx_ir as ir
import pytest

from lwqc.model import io
from lwqc.passes.one_view import one_view
from lwqc.passes.pipeline import Pipeline
from lwqc.passes.registry import BUILT_IN
from lwqc.testing import applied, assert_harmless
from tests.conftest import ZOO
from tests.zoo.materialize import materialize, sample_inputs

# Pass, what runs before, architecture.
MATCHES = [
    ("constant-reshape", "", "bert.dynamo"),
    ("convert-floats", "", "mobilenet_v2.dynamo"),
    ("flat-transpose", "", "bert.dynamo"),
    ("fold-affine", "", "convformer_s18.dynamo"),
    ("fold-constants", "", "bert.dynamo"),
    ("fold-constants", "", "mobilenet_v3_large.legacy"),
    ("fold-norms", "", "deit_tiny_distilled_patch16_224.dynamo"),
    ("fuse-attention", "simplify,raise-opset{version=23}", "vit_small_patch16_224.dynamo"),
    ("fuse-attention", "simplify,raise-opset{version=23}", "bert.dynamo"),
    ("fuse-gelu", "simplify,raise-opset{version=23}", "vit_small_patch16_224.legacy"),
    ("fuse-rms-norm", "simplify,raise-opset{version=23}", "llama.dynamo"),
    ("fuse-rotary", "simplify,raise-opset{version=23}", "llama.dynamo"),
    ("global-pool", "", "mobilenet_v2.dynamo"),
    ("grouped-experts", "simplify", "mixtral.dynamo"),
    ("identity-gather", "", "bert.dynamo"),
    ("join-equal", "", "vit_small_patch16_224.legacy"),
    ("late-broadcast", "", "bert.dynamo"),
    ("merge-parallel", "", "bert.dynamo"),
    ("merge-parallel", "", "deit_tiny_distilled_patch16_224.dynamo"),
    ("nan-guards", "", "bert.dynamo"),
    ("raise-opset{version=23}", "", "mobilenet_v2.dynamo"),
    ("residual-sum", "", "vit_small_patch16_224.dynamo"),
    ("strided-reshape", "", "swin_t.dynamo"),
    ("sizes-on-device", "simplify,raise-opset{version=23}", "bert.legacy"),
]
# Of these no architecture has what they match: it is written by other passes or quantizers, done to
# every model when it is opened, or asked for by name.
NOWHERE = {
    "decided-where", "expand-integers", "flat-product", "fuse-activations", "fuse-layer-norm",
    "graphsurgeon", "integer-bias", "kept-axes", "loop-invariants", "one-hot-gather",
    "parallel-branches", "plain-einsum", "plain-gemm", "plain-linear", "remove-branches",
    "remove-unused", "restore-floats", "stft-conv", "widen-bfloat16", "widen-floats",
}  # fmt: skip
TOLERANCE = 1e-4  # of an output's largest number, in deep models


def test_every_pass_has_its_architectures():
    assert {text.partition("{")[0] for text, *_ in MATCHES} == set(BUILT_IN) - NOWHERE


@cache
def prepared(text: str, name: str) -> ir.Model:
    path = next(path for path in ZOO if path.stem == name)
    model = one_view(io.from_proto(materialize(path))).clone()
    Pipeline.parse(text).run(model)
    return model


@pytest.mark.parametrize(("text", "before", "name"), MATCHES)
def test_passes_do_no_harm_where_they_match(text, before, name):
    (step,) = Pipeline.parse(text).steps
    model = prepared(before, name)
    feeds = sample_inputs(next(path for path in ZOO if path.stem == name))
    assert applied(step, model).changes
    assert_harmless(step, model, f"{text} on {name}", feeds=feeds, tolerance=TOLERANCE)
