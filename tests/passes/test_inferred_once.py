"""Constant folding gives the same where nodes that did not change are not inferred again."""

import contextlib

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnxscript.optimizer import _constant_folding as folding

from lwqc.passes import fold_constants
from lwqc.passes.inferred_once import inferred_once
from lwqc.passes.pipeline import Pipeline
from lwqc.testing import TRAPS, model_of, random_models, to_text

TWICE = "fold-constants,fold-constants{limit=64},constant-reshape,fold-constants"


def folded(model, monkeypatch, each_time):
    with monkeypatch.context() as patch:
        if each_time:
            patch.setattr(fold_constants, "inferred_once", contextlib.nullcontext)
        copy = model.clone()
        Pipeline.parse(TWICE).run(copy)
        return to_text(copy), [(v.name, v.type, v.shape) for n in copy.graph for v in n.outputs]


@pytest.mark.parametrize("trap", TRAPS.values(), ids=list(TRAPS))
def test_traps_are_folded_all_the_same(trap, monkeypatch):
    model = trap.model()
    assert folded(model, monkeypatch, False) == folded(model, monkeypatch, True)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(random_models())
def test_random_graphs_are_folded_all_the_same(drawn):
    with pytest.MonkeyPatch.context() as patch:
        assert folded(drawn, patch, False) == folded(drawn, patch, True)


def test_a_node_is_inferred_again_when_what_it_reads_changes(monkeypatch):
    inferred = []
    plain = folding.FoldConstantsPass._do_inference

    def counted(self, node):
        inferred.append(node.op_type)
        plain(self, node)

    monkeypatch.setattr(folding.FoldConstantsPass, "_do_inference", counted)
    model = model_of("g (float[n,8] x) => (float[n,8] y) { a = Relu(x)\n y = Tanh(a) }")
    step = fold_constants.FoldConstants()
    step(model)
    assert sorted(set(inferred)) == ["Relu", "Tanh"]
    inferred.clear()
    step(model)
    assert inferred == []
    model.graph.inputs[0].shape = ir.Shape([4, 8])
    step(model)
    assert inferred == ["Relu", "Tanh"]


def test_the_optimizer_is_put_back():
    before = folding.FoldConstantsPass._do_inference
    with inferred_once(), inferred_once():
        assert folding.FoldConstantsPass._do_inference is not before
    assert folding.FoldConstantsPass._do_inference is before
