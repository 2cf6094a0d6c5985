"""Rotating the residual stream leaves the outputs and spreads its outliers."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lwqc.errors import InputError
from lwqc.graph.groups import find_groups
from lwqc.graph.rotatable import find_streams
from lwqc.graph.shapes import declared_shapes
from lwqc.model.weights import stored_tensor
from lwqc.passes.rotate_stream import RotateStream
from lwqc.runtime.session import Session, SessionSettings
from lwqc.testing.oracles import difference, prepared, session
from tests.build import model, normal
from tests.conftest import ZOO
from tests.graph.test_zoo_groups import MODELS, drawn
from tests.zoo.materialize import materialize, sample_inputs

# Float32 noise of these models is about 1e-6.
TOLERANCE = 1e-5
ROTATABLE = [
    *("llama.dynamo", "llama_past.legacy", "qwen2.dynamo", "gpt2.dynamo"),
    *("vit_small_patch16_224.dynamo", "vit_small_patch16_224.legacy"),
    *("deit_tiny_distilled_patch16_224.dynamo", "beit_base_patch16_224.dynamo"),
    "convformer_s18.dynamo",
]


class Subject:
    def __init__(self, name):
        path = next((p for p in ZOO if p.stem == name), MODELS / f"{name}.onnx")
        zoo = path in ZOO
        proto = materialize(path) if zoo else onnx.load(path)
        self.feeds = sample_inputs(path) if zoo else drawn(proto, batch=2)
        self.model, groups, _ = prepared(ir.from_proto(proto))
        self.streams = find_streams(groups).streams
        self.reference = session(self.model)(self.feeds)
        self.known = {}

    def rotated(self, seed=0):
        """A model of one's own; its weights are rotated once."""
        if seed not in self.known:
            found = self.model.clone()
            assert RotateStream({s.group.name: seed for s in self.streams})(found).modified
            self.known[seed] = found
        return self.known[seed].clone()

    def error(self, built, **settings):
        run = Session(built, SessionSettings(**settings))
        return difference(self.reference, run(self.feeds))


@pytest.fixture(scope="module", params=[*ROTATABLE, "glyph_vit", "stdlib_lm"])
def subject(request):
    return Subject(request.param)


def test_outputs_stay(subject):
    rotated = subject.rotated()
    onnx.checker.check_model(ir.to_proto(rotated), full_check=True)
    assert subject.error(rotated) <= TOLERANCE
    assert subject.error(rotated, optimize=False) <= TOLERANCE
    assert subject.error(subject.rotated(seed=7)) <= TOLERANCE


def test_weights_change_under_their_names(subject):
    rotated = subject.rotated()
    for stream in subject.streams:
        turned = [t.value.name for t in stream.turns if t.use is None]
        assert turned
        for name in turned:
            old = subject.model.graph.initializers.get(name)
            if old is None:
                continue  # in a Constant node
            new = rotated.graph.initializers[name]
            assert new.shape == old.shape
            assert new.dtype == old.dtype
            if np.abs(stored_tensor(old).numpy()).max() > 0:
                assert not np.allclose(stored_tensor(old).numpy(), stored_tensor(new).numpy())


def test_one_weight_that_is_not_rotated_shows(subject):
    for stream in subject.streams[:1]:
        turned = [t.value.name for t in stream.turns if len(t.value.shape) > 1]
        for name in (turned[0], turned[len(turned) // 2], turned[-1]):
            broken = subject.rotated()
            if name in broken.graph.initializers:
                old = subject.model.graph.initializers[name]
                broken.graph.initializers[name].const_value = stored_tensor(old)
                assert subject.error(broken) > 10 * TOLERANCE, name


@pytest.mark.parametrize("name", ["vit_small_patch16_224.dynamo", "gpt2.dynamo"])
def test_layer_norms_become_one_fused_operator(name, tmp_path):
    subject = Subject(name)
    optimised = tmp_path / "o.onnx"
    proto = ir.to_proto(subject.rotated())
    onnx.save(proto, tmp_path / "m.onnx")
    count = sum(n.op_type == "LayerNormalization" for n in subject.model.graph)
    ops = fused(tmp_path / "m.onnx", optimised)
    assert "LayerNormalization" not in {n.op_type for n in proto.graph.node}
    assert sum("SimplifiedLayerNormalization" in op for op in ops) == count


def fused(path, optimised):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(optimised).graph.node]


def decoder(
    size=64, hidden=96, layers=2, norm="rms", outlier=0.0, tied=False, dtype=np.float32, opset=20
):
    """Embedding, MLP blocks behind norms, head; gains, and for layer norms biases, are random."""
    rng = np.random.default_rng(0)
    rows, weights = [("Gather", ["table", "ids"], "x0", {})], {}
    weights["table"] = normal(50, size, seed=1)
    if outlier:
        weights["table"][:, 5] *= outlier

    def normed(i, x):
        weights[f"g{i}"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
        if norm == "layer":
            weights[f"b{i}"] = rng.standard_normal(size).astype(np.float32)
            rows.append(("LayerNormalization", [x, f"g{i}", f"b{i}"], f"n{i}", {"epsilon": 1e-5}))
        elif norm == "decomposed":
            weights[f"b{i}"] = rng.standard_normal(size).astype(np.float32)
            rows.extend([
                ("ReduceMean", [x, "last"], f"m{i}", {}),
                ("Sub", [x, f"m{i}"], f"c{i}", {}),
                *rms(i, f"c{i}", f"s{i}"),
                ("Add", [f"s{i}", f"b{i}"], f"n{i}", {}),
            ])  # fmt: skip
        else:
            rows.extend(rms(i, x, f"n{i}"))
        return f"n{i}"

    def rms(i, x, result):
        return [
            ("Pow", [x, "two"], f"p{i}", {}),
            ("ReduceMean", [f"p{i}", "last"], f"v{i}", {}),
            ("Add", [f"v{i}", "eps"], f"e{i}", {}),
            ("Sqrt", [f"e{i}"], f"q{i}", {}),
            ("Div", [x, f"q{i}"], f"d{i}", {}),
            ("Mul", [f"d{i}", f"g{i}"], result, {}),
        ]

    weights |= {"two": np.float32(2), "eps": np.float32(1e-6), "last": np.array([-1])}
    for i in range(layers):
        weights[f"up{i}"] = normal(size, hidden, seed=10 + i, scale=size**-0.5)
        weights[f"down{i}"] = normal(hidden, size, seed=20 + i, scale=hidden**-0.5)
        n = normed(i, f"x{i}")
        rows += [
            ("MatMul", [n, f"up{i}"], f"h{i}", {}),
            ("Relu", [f"h{i}"], f"r{i}", {}),
            ("MatMul", [f"r{i}", f"down{i}"], f"f{i}", {}),
            ("Add", [f"x{i}", f"f{i}"], f"x{i + 1}", {}),
        ]
    n = normed(layers, f"x{layers}")
    if tied:
        rows += [("Transpose", ["table"], "head", {}), ("MatMul", [n, "head"], "y", {})]
    else:
        weights["head"] = normal(size, 50, seed=30, scale=size**-0.5)
        rows.append(("MatMul", [n, "head"], "y", {}))
    used = {name for row in rows for name in row[1]}
    weights = {
        k: w.astype(dtype) if w.dtype == np.float32 else w for k, w in weights.items() if k in used
    }
    types = {
        "ids": onnx.TensorProto.INT64,
        "y": onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    }
    return model(rows, weights, {"ids": ["b", "s"]}, ["y"], types=types, opset=opset)


IDS = {"ids": np.random.default_rng(3).integers(0, 50, (2, 7))}


@pytest.mark.parametrize("norm", ["rms", "layer", "decomposed"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [64, 96, 33])
def test_norms_ties_and_sizes(norm, tied, size):
    built = decoder(size, norm=norm, tied=tied)
    expected = session(built)(IDS)
    before = count(built)
    RotateStream({"table:1": 0})(built)
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    assert difference(expected, session(built)(IDS)) <= TOLERANCE
    extra = count(built) - before
    assert (extra > size**2 / 2) == tied


def count(built):
    return sum(v.const_value.size for v in built.graph.initializers.values())


def test_layer_norm_in_an_older_opset():
    built = decoder(norm="layer", opset=17)
    expected = session(built)(IDS)
    RotateStream({"table:1": 0})(built)
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    assert difference(expected, session(built)(IDS)) <= TOLERANCE


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_half_precision(norm):
    """Half a percent: float16 has eleven bits, and every weight is rounded once more."""
    built = decoder(norm=norm, dtype=np.float16)
    expected = session(built)(IDS)
    RotateStream({"table:1": 0})(built)
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    assert difference(expected, session(built)(IDS)) <= 5e-3


def crest(built, names):
    """Largest value of the stream over its root mean square, at its worst place."""
    built = built.clone()
    values = {o.name: o for n in built.graph for o in n.outputs}
    for name in names:
        built.graph.outputs.append(values[name])
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
    found = session(built)(IDS)
    return max(np.abs(found[n]).max() / np.sqrt(np.mean(found[n] ** 2)) for n in names)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_outliers_of_the_stream_spread(norm):
    """A channel 50 times as large as the others: its share falls from all 64 channels' to one's."""
    built = decoder(norm=norm, outlier=50.0)
    names = ["x0", "x1", "x2"]
    before = crest(built, names)
    RotateStream({"table:1": 0})(built)
    after = crest(built, names)
    assert before > 10
    assert after < before / 4


def test_same_seed_same_bytes():
    made = []
    for _ in range(2):
        built = decoder(norm="layer", tied=True)
        RotateStream({"table:1": 4})(built)
        made.append(ir.to_proto(built).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_nothing_asked_nothing_done():
    built = decoder()
    assert not RotateStream({})(built).modified


def test_refusals_say_why():
    with pytest.raises(InputError, match="no such stream"):
        RotateStream({"z:0": 0})(decoder())
    built = decoder()
    name = next(g.name for g in find_groups(built, declared_shapes(built)[0]) if "up" in g.name)
    with pytest.raises(InputError, match="cannot be rotated"):
        RotateStream({name: 0})(built)
    path = next(p for p in ZOO if p.stem == "bert.dynamo")
    built = prepared(ir.from_proto(materialize(path)))[0]
    with pytest.raises(InputError, match="post-norm"):
        RotateStream({"cls.predictions.decoder.weight:1": 0})(built)
