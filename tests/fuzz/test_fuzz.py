"""The first mutants of one seed; thousands more by `python -m tests.fuzz`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError

from tests.fuzz import mutants
from tests.fuzz.corpus import MODELS
from tests.fuzz.run import GOOD, endings

COUNT = 12


def test_commands_on_mutants():
    done = list(endings(2, 0, COUNT, 120.0))
    assert len(done) == COUNT
    assert [e for e in done if e.outcome not in GOOD] == []
    assert {e.outcome for e in done} == set(GOOD)


def test_a_mutant_is_told_by_its_number():
    for number in range(30):
        assert mutants.mutant(5, number) == mutants.mutant(5, number)
    assert len({mutants.mutant(5, n).data for n in range(30)}) > 25


@pytest.mark.parametrize("area", sorted(mutants.AREAS))
def test_every_mutation_finds_a_model_that_it_changes(area):
    for change in mutants.AREAS[area]:
        rng = np.random.default_rng(0)
        for name in MODELS:
            proto = onnx.ModelProto.FromString(mutants.original(name))
            try:
                for _ in range(3):
                    change(rng, proto)
            except (mutants.NothingFits, DecodeError, ValueError):
                continue
            if proto.SerializeToString() != mutants.original(name):
                break
        else:
            pytest.fail(change.__name__)
