"""Every command on files as odd and old exporters write them, checked without lwqc's help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lwqc import io
from lwqc.cleanup import clean_up
from lwqc.kept_parts import KEY
from tests.odd_files import CASES, EXACT

NUMBERS = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip
# Weight sites that an 8-bit quantization finds; two where nothing is said.
SITES = {
    "inputs_of_ir_3": 2, "convolution_of_ir_3": 0, "question_marks": 2, "uneven_sequence": 2,
    "doubles": 1, "captured_later": 1, "unknown_operators": 1, "overridable": 1,
    "passed_through": 1,
}  # fmt: skip


def session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def feeds(file: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for info in session(file).get_inputs():
        shape = [d if isinstance(d, int) else 4 for d in info.shape]
        if info.type == "tensor(bool)":
            found[info.name] = np.asarray(seed % 2 == 0)
        elif info.type == "tensor(int64)":
            found[info.name] = rng.integers(1000, 9999, shape)
        else:
            found[info.name] = rng.standard_normal(shape).astype(NUMBERS[info.type])
    return found


def flat(result: Any) -> np.ndarray:
    """All numbers of a result, sequences and maps included."""
    if isinstance(result, dict):
        return np.concatenate([flat(result[k]) for k in sorted(result)])
    if isinstance(result, list):
        return np.concatenate([flat(each) for each in result])
    return np.asarray(result, np.float64).reshape(-1)


def agree(before: Path, after: Path, least: float, exact: tuple[str, ...] = ()) -> None:
    old, new = session(before), session(after)
    assert [o.name for o in new.get_outputs()] == [o.name for o in old.get_outputs()]
    for seed in range(3):
        fed = feeds(before, seed)
        for info, a, b in zip(
            old.get_outputs(), old.run(None, fed), new.run(None, fed), strict=True
        ):
            a, b = flat(a), flat(b)
            assert a.shape == b.shape, info.name
            cosine = a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)
            assert cosine > least or not a.any(), (info.name, cosine)
            if info.name in exact:
                np.testing.assert_array_equal(a, b)


def signature(file: Path) -> tuple[list[bytes], list[bytes]]:
    graph = onnx.load(file).graph
    stored = {t.name for t in graph.initializer}
    old = onnx.load(file).ir_version < 4
    inputs = [v for v in graph.input if not (old and v.name in stored)]
    return tuple([v.SerializeToString() for v in vs] for vs in (inputs, graph.output))


def sound(before: Path, after: Path, least: float, exact: tuple[str, ...] = ()) -> None:
    written = onnx.load(after)
    onnx.checker.check_model(written, full_check=True)
    assert signature(after) == signature(before)
    assert KEY not in {e.key for e in written.metadata_props}
    if "bfloat16" not in {o.type[7:15] for o in session(before).get_outputs()}:
        agree(before, after, least, exact)


@pytest.fixture(params=sorted(CASES))
def odd(request, tmp_path) -> Path:
    path = tmp_path / f"{request.param}.onnx"
    onnx.save(CASES[request.param](), path)
    return path


def test_inspect(run, odd):
    code, text, error = run("inspect", odd, "--json")
    assert (code, error) == (0, "")
    assert '"sites": [' in text


def test_load_and_save(odd, tmp_path):
    io.save(io.load(odd), tmp_path / "o.onnx")
    sound(odd, tmp_path / "o.onnx", 1 - 1e-9)


def test_clean(run, odd, tmp_path, monkeypatch):
    quick(monkeypatch)
    code, _, error = run("compress", odd, "-o", tmp_path / "o.onnx", "--no-quantize")
    if odd.stem == "brain_output":  # random data knows no bfloat16
        assert code in (0, 2), error
        return
    assert code == 0, error
    sound(odd, tmp_path / "o.onnx", 1 - 1e-6)


def test_clean_up(odd, tmp_path):
    io.save(clean_up(io.load(odd)).model, tmp_path / "o.onnx")
    sound(odd, tmp_path / "o.onnx", 1 - 1e-6)


def test_quantize(run, odd, tmp_path):
    out = tmp_path / "o.onnx"
    code, _, error = run("quantize", odd, "-o", out, "--bits", "8", "--no-verify")
    assert code == 0, error
    sound(odd, out, 0.98)
    stored = onnx.load(out).graph.initializer
    codes = [t for t in stored if t.data_type in (2, 3) and np.prod(t.dims) >= 1024]
    assert len(codes) >= SITES.get(odd.stem, 2)


def test_lower(run, odd, tmp_path):
    out = tmp_path / "o.onnx"
    code, _, error = run(
        "lower", odd, "-o", out, "--target", "cuda", "--allow-fallback", "--no-verify"
    )
    assert code == 0, error
    sound(odd, out, 0.98, EXACT.get(odd.stem, ()))


def quick(monkeypatch) -> None:
    """Time everything only as often as it takes."""
    from lwqc import served
    from lwqc.backends import session as sessions

    timed = sessions.time_turns
    for module in (sessions, served):
        monkeypatch.setattr(module, "time_turns", lambda s, f, **_: timed(s, f, seconds=0, least=1))
