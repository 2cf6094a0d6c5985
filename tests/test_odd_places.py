"""Weights in odd places: bodies, functions, both orientations, names that others have too."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper as h
from onnx import numpy_helper

from lwqc import lower, quantize
from lwqc.decide.compress import open_version
from lwqc.decide.explain.inspection import inspect_model
from lwqc.graph.sites import find_sites
from lwqc.passes.cleanup import clean_up
from lwqc.runtime.session import Session, SessionSettings
from tests.build import normal
from tests.processor import EXACT

F, I64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
N = h.make_node


def w(name, *shape, seed=0, dtype=np.float32):
    fan = shape[0] if len(shape) == 2 else np.prod(shape[1:])
    values = normal(*shape, seed=seed + len(name), scale=float(fan) ** -0.5)
    return numpy_helper.from_array(values.astype(dtype), name)


def stored(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def v(name, *shape, dtype=F):
    return h.make_tensor_value_info(name, dtype, list(shape))


def body(nodes, inputs, outputs, weights=()):
    return h.make_graph(nodes, "body", inputs, outputs, list(weights))


def made(nodes, inputs, outputs, weights=(), functions=(), domains=()):
    graph = h.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [h.make_opsetid("", 17), *(h.make_opsetid(d, 1) for d in domains)]
    proto = h.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    onnx.checker.check_model(proto, full_check=True)
    return proto


X, Y, COND = v("x", "n", 64), v("y", "n", 64), v("c", dtype=BOOL)
FEEDS = {"x": normal(5, 64, seed=99)}


def either(then, other):
    return N("If", ["c"], ["y"], then_branch=then, else_branch=other)


def tied_in_a_body_the_other_way():
    then = body([N("Gemm", ["a", "w"], ["t"], transB=1)], [], [v("t", "n", 64)])
    other = body([N("MatMul", ["a", "w"], ["e"])], [], [v("e", "n", 64)])
    first = N("MatMul", ["x", "w"], ["a"])
    return made([first, either(then, other)], [X, COND], [Y], [w("w", 64, 64)])


def tied_and_transposed_twice():
    nodes = [
        N("Transpose", ["w"], ["wt"], perm=[1, 0]),
        N("Transpose", ["wt"], ["wtt"], perm=[1, 0]),
        N("MatMul", ["x", "wt"], ["a"]),
        N("MatMul", ["a", "wtt"], ["y"]),
    ]
    return made(nodes, [X], [Y], [w("w", 64, 64)])


def tied_oblong_matrix():
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Gemm", ["a", "w"], ["y"], transB=1)]
    return made(nodes, [X], [Y], [w("w", 64, 48)])


def embedding_tied_to_a_product_in_a_loop():
    step = body(
        [
            N("MatMul", ["s", "wt"], ["scores"]),
            N("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
            N("Gather", ["w", "best"], ["rows"]),
            N("Add", ["rows", "s"], ["so"]),
            N("Identity", ["ci"], ["co"]),
        ],
        [v("i", dtype=I64), v("ci", dtype=BOOL), v("s", "n", 64)],
        [v("co", dtype=BOOL), v("so", "n", 64)],
    )
    nodes = [
        N("Transpose", ["w"], ["wt"], perm=[1, 0]),
        N("Loop", ["trip", "", "x"], ["y"], body=step),
    ]
    return made(nodes, [X], [Y], [w("w", 32, 64), stored("trip", 2)])


def branches_with_weights_of_one_name_at_three_depths():
    def deepest(at):
        inner = [
            body([N("MatMul", ["a", "k"], [f"{at}{i}"])], [], [v(f"{at}{i}", "n", 64)], [own])
            for i, own in enumerate((w("k", 64, 64, seed=11), w("k", 64, 64, seed=22)))
        ]
        nodes = [
            N("MatMul", ["a", "q"], [f"{at}m"]),
            N("If", ["c"], [f"{at}n"], then_branch=inner[0], else_branch=inner[1]),
            N("Add", [f"{at}m", f"{at}n"], [at]),
        ]
        return body(nodes, [], [v(at, "n", 64)], [w("q", 64, 64, seed=ord(at))])

    first = N("MatMul", ["x", "w"], ["a"])
    return made([first, either(deepest("t"), deepest("e"))], [X, COND], [Y], [w("w", 64, 64)])


def loop_with_its_own_constant_nodes():
    step = body(
        [
            N("Constant", [], ["k"], value=w("", 64, 64, seed=5)),
            N("MatMul", ["s", "k"], ["m"]),
            N("Tanh", ["m"], ["so"]),
            N("Identity", ["ci"], ["co"]),
        ],
        [v("i", dtype=I64), v("ci", dtype=BOOL), v("s", "n", 64)],
        [v("co", dtype=BOOL), v("so", "n", 64)],
    )
    nodes = [N("Loop", ["trip", "", "x"], ["l"], body=step), N("MatMul", ["l", "k0"], ["y"])]
    return made(nodes, [X], [Y], [w("k0", 64, 64), stored("trip", 3)])


def scan_with_a_gemm_of_factors():
    step = body(
        [
            N("Gemm", ["s", "k", "b"], ["m"], alpha=0.5, beta=2.0, transB=1),
            N("Add", ["m", "r"], ["a"]),
            N("Tanh", ["a"], ["so"]),
            N("Identity", ["so"], ["o"]),
        ],
        [v("s", "n", 64), v("r", "n", 64)],
        [v("so", "n", 64), v("o", "n", 64)],
        [w("k", 64, 64), w("b", 1, 64)],
    )
    nodes = [
        N("Unsqueeze", ["x", "axes"], ["xs"]),
        N("Scan", ["x", "xs"], ["last", "all"], body=step, num_scan_inputs=1),
        N("MatMul", ["last", "w"], ["y"]),
    ]
    return made(nodes, [X], [Y], [w("w", 64, 64), stored("axes", [0])])


def function_with_a_weight_called_in_a_branch_too():
    inner = h.make_function(
        "own", "Inner", ["a", "k"], ["o"], [N("MatMul", ["a", "k"], ["o"])],
        [h.make_opsetid("", 17)],
    )  # fmt: skip
    outer = h.make_function(
        "own",
        "Outer",
        ["x"],
        ["y"],
        [
            N("Constant", [], ["w"], value=w("", 64, 64, seed=3)),
            N("Inner", ["x", "w"], ["a"], domain="own"),
            N("Add", ["a", "x"], ["y"]),
        ],
        [h.make_opsetid("", 17), h.make_opsetid("own", 1)],
    )
    then = body([N("Outer", ["a"], ["t"], domain="own")], [], [v("t", "n", 64)])
    other = body([N("Relu", ["a"], ["e"])], [], [v("e", "n", 64)])
    nodes = [
        N("Outer", ["x"], ["o"], domain="own"),
        N("Inner", ["o", "w"], ["a"], domain="own"),
        either(then, other),
    ]
    weights = [w("w", 64, 64)]
    return made(nodes, [X, COND], [Y], weights, [inner, outer], ["own"])


def values_called_like_what_we_make():
    nodes = [
        N("MatMul", ["x", "w"], ["w_q8"]),
        N("Relu", ["w_q8"], ["w_scale"]),
        N("MatMul", ["w_scale", "w_q"], ["w_i8"]),
        N("Add", ["w_i8", "w_zero"], ["x/a8"]),
        N("MatMul", ["x/a8", "w_qkv"], ["w_q4"]),
        N("Tanh", ["w_q4"], ["y"]),
    ]
    weights = [w("w", 64, 64), w("w_q", 64, 64), w("w_qkv", 64, 64), w("w_zero", 1, 64)]
    return made(nodes, [X], [Y], weights)


def names_of_casts_and_codes_inside_and_outside():
    then = body([N("MatMul", ["a", "k"], ["x/to_float16"])], [], [v("x/to_float16", "n", 64)])
    other = body([N("MatMul", ["a", "k"], ["k_q8"])], [], [v("k_q8", "n", 64)])
    nodes = [N("MatMul", ["x", "k"], ["a"]), either(then, other)]
    return made(nodes, [X, COND], [Y], [w("k", 64, 64)])


def gemm_as_jax_writes_it():
    nodes = [
        N("Gemm", ["x", "w", "zero"], ["a"], beta=0.0),
        N("Relu", ["a"], ["r"]),
        N("Gemm", ["r", "k", "zero"], ["b"], beta=0.0, alpha=2.0),
        N("Gemm", ["b", "k"], ["y"], beta=0.0),
    ]
    return made(nodes, [X], [Y], [w("w", 64, 64), w("k", 64, 64), stored("zero", 0.5, np.float32)])


def gemm_of_a_transposed_input():
    nodes = [
        N("Transpose", ["x"], ["xt"], perm=[1, 0]),
        N("Gemm", ["xt", "w"], ["a"], transA=1, alpha=0.5),
        N("MatMul", ["a", "k"], ["y"]),
    ]
    return made(nodes, [X], [Y], [w("w", 64, 64), w("k", 64, 64)])


def double_next_to_float():
    nodes = [
        N("MatMul", ["x", "w"], ["a"]),
        N("Cast", ["a"], ["d"], to=onnx.TensorProto.DOUBLE),
        N("MatMul", ["d", "k"], ["e"]),
        N("Cast", ["e"], ["f"], to=F),
        N("MatMul", ["f", "q"], ["y"]),
    ]
    weights = [w("w", 64, 64), w("k", 64, 64, dtype=np.float64), w("q", 64, 64)]
    return made(nodes, [X], [Y], weights)


def tied_convolutions_around_a_branch():
    conv = {"pads": [2, 2], "kernel_shape": [5]}
    then = body([N("Conv", ["b", "kk"], ["t"], **conv)], [], [v("t", "n", 16, 4)])
    other = body(
        [N("Conv", ["b", "k"], ["e"], **conv)], [], [v("e", "n", 16, 4)], [w("k", 16, 16, 5)]
    )
    nodes = [
        N("Reshape", ["x", "cut"], ["r"]),
        N("Conv", ["r", "w"], ["a"], **conv),
        N("Relu", ["a"], ["b"]),
        N("If", ["c"], ["i"], then_branch=then, else_branch=other),
        N("Conv", ["i", "w"], ["o"], **conv),
        N("Flatten", ["o"], ["y"]),
    ]
    weights = [w("w", 16, 16, 5), w("kk", 16, 16, 5), stored("cut", [0, 16, 4])]
    return made(nodes, [X, COND], [Y], weights)


def recurrent_in_a_branch():
    def lstm(out, reorder):
        nodes = [N("Unsqueeze", ["wi", "zero"], ["W"]), N("Unsqueeze", ["wh", "zero"], ["R"])]
        if reorder:
            cut = [
                N("Slice", ["wi", s, e, "zero"], [f"p{s}"]) for s, e in (("s0", "s1"), ("s1", "s2"))
            ]
            nodes = [*cut, N("Concat", ["ps1", "ps0"], ["wc"], axis=0), *nodes]
            nodes[3].input[0] = "wc"
        nodes += [
            N("Unsqueeze", ["a", "zero"], ["xs"]),
            N("LSTM", ["xs", "W", "R"], ["all", f"{out}h"], hidden_size=64),
            N("Squeeze", [f"{out}h", "zero"], [out]),
        ]
        own = [w("wi", 256, 64, seed=ord(out)), w("wh", 256, 64, seed=ord(out) + 1)]
        return body(nodes, [], [v(out, "n", 64)], own)

    nodes = [N("MatMul", ["x", "w"], ["a"]), either(lstm("t", True), lstm("e", False))]
    ends = [stored("s0", [0]), stored("s1", [128]), stored("s2", [256]), stored("zero", [0])]
    return made(nodes, [X, COND], [Y], [w("w", 64, 64), *ends])


def body_with_an_initializer_that_nothing_reads():
    then = body([N("MatMul", ["a", "k"], ["t"])], [], [v("t", "n", 64)], [w("k", 64, 64)])
    other = body([N("Relu", ["a"], ["e"])], [], [v("e", "n", 64)], [w("dead", 64, 64)])
    nodes = [N("MatMul", ["x", "w"], ["a"]), either(then, other)]
    return made(nodes, [X, COND], [Y], [w("w", 64, 64)])


PLACES = [
    tied_in_a_body_the_other_way,
    tied_and_transposed_twice,
    tied_oblong_matrix,
    embedding_tied_to_a_product_in_a_loop,
    branches_with_weights_of_one_name_at_three_depths,
    loop_with_its_own_constant_nodes,
    scan_with_a_gemm_of_factors,
    function_with_a_weight_called_in_a_branch_too,
    values_called_like_what_we_make,
    names_of_casts_and_codes_inside_and_outside,
    gemm_as_jax_writes_it,
    gemm_of_a_transposed_input,
    double_next_to_float,
    tied_convolutions_around_a_branch,
    recurrent_in_a_branch,
    body_with_an_initializer_that_nothing_reads,
]
everywhere = pytest.mark.parametrize("place", PLACES, ids=lambda p: p.__name__)


def feeds(proto):
    """Inputs, with every value of the condition."""
    if len(proto.graph.input) == 1:
        return [FEEDS]
    return [{**FEEDS, "c": np.array(c)} for c in (True, False)]


def check(proto, changed, least, larger=1000):
    """The changed model is valid, no larger, and computes about the same, fused or not."""
    found = ir.serde.serialize_model(changed)
    onnx.checker.check_model(found, full_check=True)
    assert found.ByteSize() <= proto.ByteSize() + larger
    reference = Session(ir.serde.deserialize_model(proto))
    for optimize in (True, False):
        session = Session(changed, SessionSettings(optimize=optimize))
        for given in feeds(proto):
            a, b = reference(given)["y"].ravel(), session(given)["y"].ravel()
            assert (a * b).sum() >= least * np.linalg.norm(a) * np.linalg.norm(b)


@everywhere
def test_every_command_takes_it(place):
    proto = place()
    names = {s.name for s in inspect_model(ir.serde.deserialize_model(proto)).sites.sites}
    assert names
    work = open_version(ir.serde.deserialize_model(proto))
    assert set(work.sites) == names
    check(proto, clean_up(work.model).model, 1 - 1e-5, larger=40_000)  # transposed once


@everywhere
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"bits": 8}, 0.999),
        ({"bits": 4}, 0.95),
        ({"bits": 8, "activations": "dynamic"}, 0.98),
        # Weights of 7 bits, where sums are not exact, have steps twice as large.
        ({"bits": 8, "activations": "static", "data": "random:4"}, 0.98 if EXACT else 0.96),
    ],
    ids=["q8", "q4", "dynamic", "static"],
)
def test_quantized(place, options, least):
    proto = place()
    done = quantize(ir.serde.deserialize_model(proto), **options)
    assert done.plan.quantize
    check(proto, done.model, least, larger=0)
    # Of what was quantized, no float tensor is left.
    small = sum(s.float_bytes for n, s in done.work.sites.items() if n not in done.plan.quantize)
    small += sum(8 * s.size for s in done.work.analysis.skipped)
    floats = [
        value.const_value
        for graph in done.model.graphs()
        for value in graph.initializers.values()
        if value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    ]
    assert max((t.nbytes for t in floats), default=0) <= max(small, 8 * 1024)


@everywhere
def test_float16_and_back(place):
    """What another target stores has unique names too."""
    proto = place()
    done = quantize(ir.serde.deserialize_model(proto), bits=4, target="cuda")
    onnx.checker.check_model(ir.serde.serialize_model(done.model), full_check=True)


@pytest.mark.parametrize(
    ("place", "bits"),
    [
        (embedding_tied_to_a_product_in_a_loop, 8),
        (branches_with_weights_of_one_name_at_three_depths, 4),
        (tied_convolutions_around_a_branch, 8),
        (recurrent_in_a_branch, 8),
        (recurrent_in_a_branch, 4),
    ],
)
def test_codes_in_bodies_are_kept_where_the_target_has_the_format(place, bits):
    proto = place()
    data = [{**given, "x": FEEDS["x"]} for given in feeds(proto)]
    done = quantize(ir.serde.deserialize_model(proto), bits=bits, data=data)
    before = ir.serde.serialize_model(done.model)
    for target in ("cpu-vnni", "cuda"):
        after = lower(ir.serde.deserialize_model(before), target=target, data=data)
        assert len(after.decisions.quantize) == len(done.decisions.quantize), target
        check(before, after.model, 0.9999, larger=6000)  # names
    bare = lower(ir.serde.deserialize_model(before), target="tensorrt", data=data)
    missing = {s.name for s in bare.sites.values()} - set(bare.decisions.quantize)
    assert missing <= set(bare.decisions.kept_float)
    check(before, bare.model, 0.999, larger=proto.ByteSize())


def test_sites_of_one_name_are_told_apart_the_same_way_in_clones():
    model = ir.serde.deserialize_model(branches_with_weights_of_one_name_at_three_depths())
    names = [s.name for s in find_sites(model).sites]
    assert len(names) == len(set(names)) == 7
    assert names == [s.name for s in find_sites(model.clone()).sites]


def test_both_branches_keep_their_own_weight():
    proto = branches_with_weights_of_one_name_at_three_depths()
    done = quantize(ir.serde.deserialize_model(proto), bits=8)
    assert len(done.plan.quantize) == 7


@pytest.mark.parametrize(("made_of", "least"), [(gemm_as_jax_writes_it, 3)])
def test_factors_of_a_gemm_are_no_obstacle(made_of, least):
    done = quantize(ir.serde.deserialize_model(made_of()), bits=8)
    assert len(done.plan.quantize) == least
    most = {"Add": 0, "Gemm": 2, "MatMulNBits": 5}  # operands of each without a bias
    assert not [n for n in done.model.graph if len(n.inputs) > most.get(n.op_type, 6)]


def test_a_transposed_input_is_refused_with_the_reason():
    work = open_version(ir.serde.deserialize_model(gemm_of_a_transposed_input()))
    assert [(s.name, "transA" in s.reason) for s in work.analysis.skipped] == [("w", True)]


def test_the_given_model_stays_as_it_was():
    proto = branches_with_weights_of_one_name_at_three_depths()
    before = proto.SerializeToString(deterministic=True)
    quantize(ir.serde.deserialize_model(proto), bits=8)
    assert proto.SerializeToString(deterministic=True) == before


def test_no_activation_pairs_in_front_of_what_a_body_reads():
    """They can abort the process while the session is made (onnxruntime 1.31.1)."""
    conv = {"pads": [1, 1], "kernel_shape": [3]}
    then = body([N("Relu", ["b"], ["t"])], [], [v("t", "n", 32, 2)])
    other = body([N("Abs", ["b"], ["e"])], [], [v("e", "n", 32, 2)])
    nodes = [
        N("Reshape", ["x", "cut"], ["r"]),
        N("Conv", ["r", "w"], ["a"], **conv),
        N("Conv", ["a", "k"], ["b"], **conv),
        N("If", ["c"], ["i"], then_branch=then, else_branch=other),
        N("Conv", ["i", "q"], ["o"], **conv),
        N("Relu", ["o"], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]
    weights = [w(n, 32, 32, 3) for n in ("w", "k", "q")]
    proto = made(nodes, [X, COND], [Y], [*weights, stored("cut", [0, 32, 2])])
    done = quantize(ir.serde.deserialize_model(proto), activations="static", data="random:16")
    activations = {n: e.activation for n, e in done.plan.quantize.items()}
    assert activations == {"w": "none", "k": "none", "q": "static"}
    assert "feeds the body" in done.plan.kept_float["w"]
    check(proto, done.model, 0.98, larger=0)


def test_codes_of_an_lstm_of_two_directions_stay_codes():
    nodes = [
        N("Unsqueeze", ["x", "zero"], ["xs"]),
        N("LSTM", ["xs", "W", "R"], ["all", "h"], hidden_size=32, direction="bidirectional"),
        N("ReduceSum", ["h", "zero"], ["y"], keepdims=0),
    ]
    weights = [w("W", 2, 128, 64), w("R", 2, 128, 32), stored("zero", [0])]
    proto = made(nodes, [X], [v("y", "n", 32)], weights)
    done = quantize(ir.serde.deserialize_model(proto), bits=8)
    check(proto, done.model, 0.999, larger=0)
    again = lower(done.model, target="cpu")
    check(ir.serde.serialize_model(done.model), again.model, 0.9999, larger=500)
