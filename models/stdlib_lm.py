"""A Llama-style language model of the Python standard library's sources: task and metrics.

Two files hold one set of weights: `stdlib_lm.onnx` maps `input_ids` to `logits`;
`stdlib_lm_past.onnx` also takes and returns keys and values. Functions ending in `_past` are for
the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.byte_pairs import BytePairs, learn
from models.stdlib_corpus import texts
from models.training import FOLDER, Feeds, OpenModel, Run, command, open_run

MODEL, MODEL_PAST = FOLDER / "stdlib_lm.onnx", FOLDER / "stdlib_lm_past.onnx"
DATA, VOCABULARY = FOLDER / "stdlib_lm_eval.npz", FOLDER / "stdlib_lm_bpe.json"
TOKENS, LAYERS, KV_HEADS, HEAD_WIDTH = 1024, 12, 2, 24
_EXCERPT, _WINDOW, _CALIBRATED, _SEED, _BATCH = 6144, 256, 16, 11, 4
_PROMPTS, _PROMPT, _CONTINUED = 32, 64, 32


def make_data(vocabulary: BytePairs) -> dict[str, NDArray[Any]]:
    """What `stdlib_lm_eval.npz` holds.

    test_text: the beginnings of all held-back files, a zero byte after each, uint8.
    calibration_tokens: windows of training files, uint16 [16, 256].
    """
    held_back = b"".join(text[:_EXCERPT] + b"\0" for text in texts(held_back=True))
    stream = vocabulary.encode(b"\0".join(texts(held_back=False)))
    starts = np.random.default_rng(_SEED).integers(0, len(stream) - _WINDOW, _CALIBRATED)
    return {
        "test_text": np.frombuffer(held_back, np.uint8),
        "calibration_tokens": np.stack([stream[s : s + _WINDOW] for s in starts]).astype(np.uint16),
    }


def calibration() -> Iterator[Feeds]:
    """Windows of training files: `input_ids` [4, 256]."""
    with np.load(DATA) as data:
        windows = data["calibration_tokens"].astype(np.int64)
    for start in range(0, len(windows), _BATCH):
        yield {"input_ids": windows[start : start + _BATCH]}


def calibration_past() -> Iterator[Feeds]:
    """The same windows in two feeds each: 192 tokens without, then 64 with a past."""
    reference = _float_model_past()
    for feeds in calibration():
        first, second = np.split(feeds["input_ids"], [192], axis=1)
        begin = {"input_ids": first, **empty_past(len(first))}
        yield begin
        yield {"input_ids": second, **_as_past(reference(begin))}


def bits_per_byte(run: Run, windows: Iterable[NDArray[np.int64]] | None = None) -> float:
    """Mean negative log2 probability per byte of the held-back text; lower is better.

    windows: batches of `test_windows` [n, 256], all of them if None.
    """
    vocabulary = BytePairs.load(VOCABULARY)
    nats, size = 0.0, 0
    for ids in test_windows() if windows is None else windows:
        logits = run({"input_ids": ids})["logits"][:, :-1].astype(np.float64)
        peak = logits.max(-1)
        total = np.log(np.exp(logits - peak[..., None]).sum(-1)) + peak
        chosen = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        nats += float((total - chosen).sum())
        size += len(vocabulary.decode(ids[:, 1:].ravel()))
    return nats / size / float(np.log(2))


def greedy_agreement(run: Run) -> float:
    """Share of tokens that a model picks as the float model did, continuing held-back text.

    Both see the float model's own continuation so far: one early difference counts once.
    """
    continued = greedy_continuations()
    predicted = run({"input_ids": continued[:, :-1]})["logits"][:, _PROMPT - 1 :].argmax(-1)
    return float(np.mean(predicted == continued[:, _PROMPT:]))


def bits_per_byte_past(run: Run) -> float:
    """`bits_per_byte` of the graph with a past, here always empty."""
    return bits_per_byte(_without_past(run))


def greedy_agreement_past(run: Run) -> float:
    """`greedy_agreement` of the graph with a past, fed one token at a time after the prompt."""
    continued = greedy_continuations()
    outputs = run({"input_ids": continued[:, :_PROMPT], **empty_past(len(continued))})
    agreed = []
    for position in range(_PROMPT, continued.shape[1]):
        predicted = outputs["logits"][:, -1].argmax(-1)
        agreed.append(predicted == continued[:, position])
        outputs = run({"input_ids": continued[:, position, None], **_as_past(outputs)})
    return float(np.mean(agreed))


for _metric in (bits_per_byte, bits_per_byte_past):
    setattr(_metric, "higher_is_better", False)  # noqa: B010  mypy knows no such attribute


@lru_cache(maxsize=1)
def greedy_continuations() -> NDArray[np.int64]:
    """Prompts of 64 held-back tokens and the 32 that the shipped float model adds: [32, 96]."""
    windows = np.concatenate(list(test_windows()))
    every = len(windows) // _PROMPTS
    prompts = windows[: every * _PROMPTS : every, :_PROMPT]
    return continue_greedily(_float_model_past(), prompts, _CONTINUED)


def continue_greedily(run_past: Run, prompts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Prompts [batch, n] followed by `count` most probable tokens: [batch, n + count]."""
    ids = [prompts]
    outputs = run_past({"input_ids": prompts, **empty_past(len(prompts))})
    for _ in range(count):
        ids.append(outputs["logits"][:, -1:].argmax(-1))
        outputs = run_past({"input_ids": ids[-1], **_as_past(outputs)})
    return np.concatenate(ids, axis=1)


def empty_past(batch: int) -> Feeds:
    """Keys and values of no tokens."""
    nothing = np.zeros((batch, KV_HEADS, 0, HEAD_WIDTH), np.float32)
    return {f"past_{kind}{i}": nothing for i in range(LAYERS) for kind in "kv"}


@lru_cache(maxsize=1)
def _float_model_past() -> OpenModel:
    return open_run(MODEL_PAST)


def _as_past(outputs: Mapping[str, NDArray[Any]]) -> Feeds:
    """Outputs `present_*` under the names of the inputs."""
    return {k.replace("present", "past"): v for k, v in outputs.items() if k.startswith("present")}


def _without_past(run: Run) -> Run:
    def run_without(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return run({**feeds, **empty_past(len(feeds["input_ids"]))})

    return run_without


def test_windows() -> Iterator[NDArray[np.int64]]:
    """Tokens of the held-back text, [4, 256]; windows share one token.

    So every token but the first is predicted once. The incomplete last window is left out.
    """
    tokens = _test_tokens()
    starts = np.arange(0, len(tokens) - _WINDOW, _WINDOW - 1)
    windows = tokens[starts[:, None] + np.arange(_WINDOW)]
    yield from np.split(windows, np.arange(_BATCH, len(windows), _BATCH))


@lru_cache(maxsize=1)
def _test_tokens() -> NDArray[np.int64]:
    with np.load(DATA) as data:
        return np.array(BytePairs.load(VOCABULARY).encode(data["test_text"].tobytes()), np.int64)


def metrics(model: OpenModel) -> dict[str, float]:
    """What `--evaluate` prints, for either graph."""
    with_past = "past_k0" in model.inputs
    chosen: dict[str, Callable[[Run], float]] = {
        "bits_per_byte": bits_per_byte_past if with_past else bits_per_byte,
        "greedy_agreement": greedy_agreement_past if with_past else greedy_agreement,
    }
    return {name: metric(model) for name, metric in chosen.items()}


def train(path: Path, minutes: float) -> None:
    """Learn vocabulary and weights; write both graphs and, beside them, their shared data."""
    from models.stdlib_lm_training import export_decoder, train_decoder

    vocabulary = learn(texts(held_back=False), TOKENS)
    vocabulary.save(VOCABULARY)
    np.savez_compressed(DATA, **make_data(vocabulary))  # type: ignore[arg-type]
    export_decoder(train_decoder(vocabulary, minutes, path.with_suffix(".pt")), path)


if __name__ == "__main__":
    command("stdlib_lm", metrics, train, MODEL)
