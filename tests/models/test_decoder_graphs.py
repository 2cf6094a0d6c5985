"""`stdlib_lm.onnx` and `stdlib_lm_past.onnx` are one model with one file of weights."""

from __future__ import annotations

import numpy as np
import onnx

from models import stdlib_lm
from models.training import open_run


def test_feeding_tokens_one_by_one_gives_the_logits_of_the_whole_text() -> None:
    ids = next(stdlib_lm.calibration())["input_ids"][:2, :24]
    whole = open_run(stdlib_lm.MODEL)({"input_ids": ids})["logits"]
    step = open_run(stdlib_lm.MODEL_PAST)
    past, logits = stdlib_lm.empty_past(2), []
    for position in range(ids.shape[1]):
        outputs = step({"input_ids": ids[:, position, None], **past})
        logits.append(outputs["logits"])
        past = {k.replace("present", "past"): v for k, v in outputs.items() if k != "logits"}
    # Logits reach about 20; sums in another order move them by some 1e-5.
    np.testing.assert_allclose(np.concatenate(logits, 1), whole, atol=1e-3)


def test_greedy_agreement_of_the_cached_graph_is_complete() -> None:
    assert stdlib_lm.greedy_agreement_past(open_run(stdlib_lm.MODEL_PAST)) > 0.995


def test_greedy_agreement_falls_when_logits_are_spoilt() -> None:
    run = open_run(stdlib_lm.MODEL)

    def spoilt(feeds):
        logits = run(feeds)["logits"]
        return {"logits": logits + np.random.default_rng(0).normal(0, 3, logits.shape)}

    assert stdlib_lm.greedy_agreement(spoilt) < 0.9


def test_both_graphs_refer_to_the_same_bytes() -> None:
    def references(path):
        model = onnx.load(path, load_external_data=False)
        external = [t for t in model.graph.initializer if t.external_data]
        return {
            t.name: tuple((e.key, e.value) for e in t.external_data if e.key != "checksum")
            for t in external
            if len(t.dims) == 2
        }

    plain, cached = references(stdlib_lm.MODEL), references(stdlib_lm.MODEL_PAST)
    assert set(plain.values()) == set(cached.values())
    assert len(plain) == 12 * 7 + 1
    assert stdlib_lm.MODEL.stat().st_size < 500_000
