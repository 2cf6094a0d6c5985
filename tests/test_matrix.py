"""Every command on small models of different structure, for every kind of processor.

What comes out is checked by the runtime alone. Of all combinations a share is tried in which every
command meets every processor, and every model half of the commands: all of them take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests import test_chains as chains
from tests import test_odd_places as places
from tests.odd_files import CASES
from tests.processor import EXACT
from tests.short import short
from tests.test_lifted import convolutions as old_convolutions

PROCESSORS = ("cpu-vnni", "cpu-avx2", "cpu-arm")
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "linear": lambda: ir.to_proto(chains.mlp()),
    "convolutions": lambda: ir.to_proto(chains.convolutions()),
    "tied": lambda: ir.to_proto(chains.tied()),
    "attention": lambda: ir.to_proto(chains.attention()),
    "old": lambda: old_convolutions(9),
    "branches": places.branches_with_weights_of_one_name_at_three_depths,
    "loop": places.embedding_tied_to_a_product_in_a_loop,
    "scan": places.scan_with_a_gemm_of_factors,
    "recurrent": places.recurrent_in_a_branch,
    "function": places.function_with_a_weight_called_in_a_branch_too,
    "sequence": CASES["uneven_sequence"],
    "unnamed sizes": CASES["question_marks"],
}
# Name, arguments, and the least cosine; None where what is computed changes.
COMMANDS: list[tuple[str, list[str], float | None]] = [
    ("compress", [], 0.98),
    ("compress with data", ["--data"], 0.98),
    ("compress to a size", ["--data", "--max-size", "0.5", "--workers", "1"], None),
    ("quantize to 8", ["--bits", "8"], 0.99),
    ("quantize to 4", ["--bits", "4"], 0.9),
    ("quantize by data", ["--bits", "4", "--data", "--method", "gptq"], 0.9),
    ("quantize dynamic", ["--bits", "8", "--activations", "dynamic"], 0.97),
    ("quantize static", ["--bits", "8", "--activations", "static", "--data"], 0.97),
    ("prune", ["--ratio", "0.3"], None),
    ("prune with data", ["--ratio", "0.3", "--data"], None),
    ("drop", ["--branches", "1"], None),
    ("plan", ["--data"], 0.98),
    ("lower", [], 0.9999),
]
ROUNDS = [
    (model, command, PROCESSORS[(i + j) % 3])
    for i, model in enumerate(MODELS)
    for j, command in enumerate(c[0] for c in COMMANDS)
    if (i + j) % 2 == 0
]
# What such models do not have, said in these words.
LACKING = ("has no residual branch that could be removed", "nothing can be pruned: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        onnx.save(build(), path / f"{name}.onnx")
        np.savez(path / f"{name}.npz", **drawn(path / f"{name}.onnx", 0))
    return path


def session(path: Path, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def drawn(path: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for given in session(path).get_inputs():
        shape = [d if isinstance(d, int) else 8 for d in given.shape]
        if given.type == "tensor(float)":
            feeds[given.name] = rng.standard_normal(shape).astype(np.float32)
        elif given.type == "tensor(bool)":
            feeds[given.name] = np.asarray(rng.random(shape) > 0.5)
        else:
            feeds[given.name] = rng.integers(0, 4, shape)
    return feeds


def flat(value) -> np.ndarray:
    pieces = value if isinstance(value, list) else [value]
    return np.concatenate([np.asarray(v, np.float64).ravel() for v in pieces])


def sound(before: Path, after: Path, least: float | None) -> None:
    """Valid, with the same signature, and it runs, fused or not, and computes nearly the same."""
    onnx.checker.check_model(after, full_check=True)
    old, signatures = session(before), []
    for one in (old, session(after)):
        signatures.append(
            [(v.name, v.type, v.shape) for v in (*one.get_inputs(), *one.get_outputs())]
        )
    assert signatures[0] == signatures[1]
    feeds = drawn(before, 1)
    for optimize in (True, False):
        for a, b in zip(
            old.run(None, feeds), session(after, optimize).run(None, feeds), strict=True
        ):
            a, b = flat(a), flat(b)
            assert np.isfinite(b).all()
            if least is not None:
                assert a @ b >= least * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize(("model", "command", "processor"), ROUNDS)
def test_the_promise_holds(model, command, processor, run, folder, tmp_path, monkeypatch):
    short(monkeypatch)
    (options, least) = next(c[1:] for c in COMMANDS if c[0] == command)
    source, out = folder / f"{model}.onnx", tmp_path / "o.onnx"
    options = [x for o in options for x in ([o, folder / f"{model}.npz"] if o == "--data" else [o])]
    verb, goal = command.split()[0], ["--target", processor]
    if verb == "plan":
        made = tmp_path / "plan.json"
        assert run("plan", source, "-o", made, *options, *goal)[0] == 0
        code, _, error = run("apply", source, made, "-o", out, *options)
    elif verb == "lower":
        assert run("quantize", source, "-o", tmp_path / "q.onnx", "--no-verify")[0] == 0
        source = tmp_path / "q.onnx"
        code, _, error = run("lower", source, "-o", out, *goal)
    else:
        code, _, error = run(verb, source, "-o", out, *options, *goal)
    if code == 2:
        assert any(words in error for words in LACKING), error
        assert len(error.strip().splitlines()) == 1
        assert not out.exists()
        return
    missed = "constraint not met" in error
    assert code == (3 if missed else 0), error
    # Sums of 8-bit products are exact on processors with VNNI, those of 7 bits everywhere.
    exact = EXACT or processor == "cpu-avx2"
    sound(source, out, least if exact and not missed else None)
