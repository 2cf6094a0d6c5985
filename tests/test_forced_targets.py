"""Every target that is no processor, on small models: a sound file, or a reason in a line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lwqc.model.extensions import TARGETS
from tests.short import short
from tests.test_matrix import COMMANDS, MODELS, drawn, flat, folder, session

__all__ = ["folder"]
FORCED = [name for name in TARGETS.built_in if not name.startswith("cpu")]
# Of every target one model, of all targets most models and commands.
ROUNDS = [
    (target, list(MODELS)[i % len(MODELS)], COMMANDS[(3 * i + 1) % len(COMMANDS)])
    for i, target in enumerate(FORCED)
]


@pytest.mark.parametrize(
    ("target", "model", "command"), ROUNDS, ids=[f"{t}-{m}-{c[0]}" for t, m, c in ROUNDS]
)
def test_a_file_or_a_reason(target, model, command, run, folder, tmp_path, monkeypatch):
    short(monkeypatch)
    name, options, _ = command
    source, out = folder / f"{model}.onnx", tmp_path / "o.onnx"
    options = [x for o in options for x in ([o, folder / f"{model}.npz"] if o == "--data" else [o])]
    verb = "lower" if name == "plan" else name.split()[0]
    code, _, error = run(verb, source, "-o", out, *options, "--target", target)
    if code == 2:
        assert len(error.strip().splitlines()) == 1
        assert target in error or "nothing can be pruned" in error or "residual branch" in error
        assert not out.exists()
        return
    assert code in (0, 3), error
    onnx.checker.check_model(out, full_check=True)
    # Fusions of the CPU are not what such files are made for.
    for value in session(out, optimize=False).run(None, drawn(source, 1)):
        assert np.isfinite(flat(value)).all()
