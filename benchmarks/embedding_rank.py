"""Tables of embeddings as two factors, and as codes in as many bytes; all else stays float.

    python -m benchmarks.embedding_rank [minilm.onnx]

Without arguments `stdlib_lm`, bits per byte of 20 held-out windows; with the file of
`models.minilm` its mean cosine on 420 sentences. `bytes`: of the table or of its factors, scales
included. Codes are found by `gptq-order` where a product reads them, else rounded to nearest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.orders import bits_per_byte
from lwqc.compile.steps.factored import factored
from lwqc.compile.version import Version
from lwqc.decide.compress import open_version
from lwqc.decide.embedding_ranks import choose_ranks
from lwqc.graph.sites import sites_by_name
from lwqc.model.edit import replace_stored
from lwqc.plans.recipe import EmbeddingRecipe
from lwqc.quant.formats import WeightFormat
from lwqc.quant.methods import encode_by
from lwqc.runtime.session import Session
from models import minilm, stdlib_lm

ROOT = Path(__file__).parents[1]
SHARES = (0.5, 0.25, 0.125)
CODES = ("w8b32h", "w4b32h", "w3b32hd", "vq5x2", "w2b32h", "vq6x4")
FACTOR_CODES = ("w8b32h", "w4b32h")
Loss = Callable[[Session], float]


def main() -> None:
    """Print a table."""
    if sys.argv[1:]:
        work = open_version(sys.argv[1], data=minilm.calibration())
        loss: Loss = _Cosine(work)
    else:
        work = open_version(ROOT / "models/stdlib_lm.onnx", data=stdlib_lm.calibration())
        loss = bits_per_byte
    (entry, *_), _ = choose_ranks(work, EmbeddingRecipe(rank=SHARES[-1]))
    print(f"\n| {entry.table} | bytes | {'cosine' if sys.argv[1:] else 'bits per byte'} |")
    print("| --- | ---: | ---: |")
    own = [entry.table]
    _row("float", work, own, None, loss)
    for code in CODES:
        _row(code, work, own, code, loss)
    for share in SHARES:
        entries, _ = choose_ranks(work, EmbeddingRecipe(rank=share))
        rank = entries[0].rank
        made = factored(work, entries[:1])
        parts = [entry.table, *(made.sites.keys() - work.sites.keys())]
        for code in (None, *FACTOR_CODES):
            _row(f"rank {rank}, {code or 'float'}", made, parts, code, loss)
        alike = [e.model_copy(update={"calibration": "none"}) for e in entries[:1]]
        _row(f"rank {rank}, float, all rows alike", factored(work, alike), parts, None, loss)


def _row(label: str, work: Version, names: list[str], code: str | None, loss: Loss) -> None:
    """Sites of these names in a format, None for as they are."""
    model, size = work.model.clone(), 0
    sites = sites_by_name(model)
    for name in names:
        site = sites[name]
        if code is None:
            size += site.float_bytes
            continue
        fmt, weight = WeightFormat.parse(code), work.weights.weight(name)
        gram = work.grams(name)
        size += fmt.size_bytes(*weight.shape)
        found = encode_by("rtn" if gram is None else "gptq-order", weight, fmt, gram).decode()
        steps = sum(step.op_type == "Transpose" for step in site.weight.steps)
        turned = (steps + site.uses[0].transposed) % 2
        array = np.ascontiguousarray(found.T if turned else found, np.float32)
        replace_stored(site.weight.source, ir.tensor(array, name=name))
    print(f"| {label} | {size:,} | {loss(Session(model, label=label)):.4f} |", flush=True)


class _Cosine:
    """Mean cosine of sentence embeddings to those of the float model."""

    def __init__(self, work: Version) -> None:
        self._reference = self._of(Session(work.model, label="float"))

    def __call__(self, run: Session) -> float:
        return float((self._of(run) * self._reference).sum(-1).mean())

    @staticmethod
    def _of(run: Session) -> np.ndarray:
        found = minilm.embed(run).astype(np.float64)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
