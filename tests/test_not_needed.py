"""What a job does not need is not done: looking for extensions, counting bytes of candidates."""

from __future__ import annotations

import numpy as np
import pytest

from lwqc.compile.candidates import evaluate
from lwqc.decide import planning
from lwqc.decide.compress import open_version
from lwqc.errors import InputError
from lwqc.model import extensions, io
from lwqc.model.extensions import TARGETS
from tests.build import model, normal


def test_extensions_are_looked_for_only_where_a_name_is_not_ours(monkeypatch):
    asked = []
    monkeypatch.setattr(extensions, "entry_points", lambda group: asked.append(group) or ())
    TARGETS.check("cpu")
    assert not asked
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        TARGETS.check("cude")
    assert asked


def test_the_size_of_a_candidate_is_counted_when_it_is_asked_for(monkeypatch):
    net = model([("MatMul", ["x", "w"], "y", {})], {"w": normal(64, 64)}, {"x": [2, 64]}, ["y"])
    work = open_version(net, data=[{"x": np.ones((2, 64), np.float32)}])
    counted = []
    real = io.serialized_bytes
    monkeypatch.setattr(io, "serialized_bytes", lambda m: counted.append(m) or real(m))
    candidate, _ = evaluate(work, planning.folded(work, ""))
    assert not counted
    assert candidate.size_bytes == candidate.size_bytes == real(candidate.lowered.model)
    assert len(counted) == 1
