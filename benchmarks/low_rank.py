"""Low rank without training: what a product of two thin matrices in place of a weight would cost.

    python -m benchmarks.low_rank [NAME ...]

Every matrix of a MatMul or Gemm [N, K] becomes the product of rank r that is nearest to it at the
layer's output on the calibration data (`quant.low_rank`), r such that r (N + K) is the given share
of N K, thus of its MACs. `output error`: mean over the layers. The metric is taken on held-back
data, in float; compare with channels removed for the same share of MACs (`prune_zoo`).
"""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir

from benchmarks.weights import MODELS, ROOT
from lwqc.decide.compress import open_version
from lwqc.graph.sites import Site, sites_by_name
from lwqc.model.edit import replace_stored
from lwqc.quant.low_rank import low_rank
from lwqc.quant.output_error import output_error
from lwqc.runtime.session import Session

SHARES = (0.9, 0.8, 0.7, 0.5)


def main() -> None:
    """Print a table per model."""
    for name in sys.argv[1:] or ["glyph_vit", "stdlib_lm"]:
        print(f"\n| {name}, share of MACs of products | output error | metric |")
        print("| ---: | ---: | ---: |")
        for share, error, metric in measured(name):
            print(f"| {share:g} | {error:.4f} | {metric:.4f} |", flush=True)


def measured(name: str) -> list[tuple[float, float, float]]:
    """Share, mean output error and metric."""
    file, data, metric = MODELS[name]
    work = open_version(ROOT / file, data=data, metric=metric)
    assert work.job.metric is not None
    rows = [(1.0, 0.0, work.original.metric or 0.0)]
    for share in SHARES:
        model, errors = work.model.clone(), []
        for site in sites_by_name(model).values():
            if not site.ops <= {"MatMul", "Gemm"} or work.grams.reason(site.name):
                continue
            weight, gram = work.weights.weight(site.name), work.grams(site.name)
            assert gram is not None
            assert not site.weight.steps, "the stored matrix is the operator's"
            rank = max(1, int(share * site.n * site.k / (site.n + site.k)))
            left, right = low_rank(weight, rank, gram[0])
            errors.append(output_error(weight, left @ right, gram))
            _store(site, (left @ right).astype(np.float32))
        found = work.job.metric(Session(model, label=f"low rank {share:g}"))
        rows.append((share, float(np.mean(errors)), found))
    return rows


def _store(site: Site, matrix: np.ndarray) -> None:
    array = np.ascontiguousarray(matrix.T if site.uses[0].transposed else matrix)
    replace_stored(site.weight.source, ir.tensor(array, name=site.name))


if __name__ == "__main__":
    main()
