"""Weights in 2 to 3 bits: codebooks beside grids of 2, 3 and 4 bits.

    python -m benchmarks.codebooks [--models NAME ...] [--only uniform | mixed]
        [--averages BITS ...] [--json FILE]
    python -m benchmarks.codebooks --show FILE ...

One format for all weights, codes by descent; and mixed bits, the knapsack's choice among all
formats for an average number of stored bits, beside its choice without codebooks for the bytes of
that file, or as few as it can. `entropy`: bits per weight of the best code without memory for
indices and dense codes. The metric is taken on data that calibration did not see (bits per byte:
lower is better); `output error` is the squared error of the model's outputs on the calibration data
relative to their energy. `load`: what unpacking adds to the time in which a session is made, median
of five.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.weights import MODELS, ROOT, judged
from lwqc.compile.candidates import with_formats
from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.decide.compress import open_version
from lwqc.model import io
from lwqc.passes.encoded_weights import stored_parts
from lwqc.plans.plan import Plan
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.session import Session

UNIFORM = ("w2b32h", "vq4x2", "vq5x2", "vq8x4", "w3b32hd", "vq6x2", "w4b32h")
AVERAGES = (2.25, 2.5, 3.0)
METHOD = "descent"
Row = dict[str, Any]


def measured(name: str, only: str, averages: Sequence[float]) -> Iterator[Row]:
    """All rows of one model."""
    file, data, metric = MODELS[name]
    work = open_version(ROOT / file, data=data, metric=metric)
    yield {"model": name, "what": "float", "bytes": work.original.size_bytes, "bits": 32.0,
           "metric": work.original.metric}  # fmt: skip
    if only in "uniform":
        for text in UNIFORM:
            fmt = WeightFormat.parse(text)
            plan = planning.uniform(work, fmt.bits, "none", fmt=fmt)
            yield made(work, name, text, planning.with_method(work, plan, METHOD))
    if only in "mixed":
        yield from mixed_rows(work, name, averages)


def mixed_rows(work: Version, name: str, averages: Sequence[float]) -> Iterator[Row]:
    """The knapsack with and without codebooks, for the same bytes."""
    # Grids in the forms of fewest bytes: those that a kernel reads as they are.
    curves = mixed.choices(work, "measured", METHOD, tiny=True, unpack=False)
    grids = [without_codebooks(curve) for curve in curves]
    for average in averages:
        plan = mixed.within_average_bits(work, curves, average, "")
        row = made(work, name, f"mixed for {average:g} bits", plan)
        yield row
        plan = mixed.within_bytes(work, grids, row["bytes"], "")
        fits = io.serialized_bytes(with_formats(work, plan).model) <= row["bytes"]
        which = "the same bytes" if fits else "the fewest bytes"
        yield made(work, name, f"mixed, grids, {which}", plan)


def without_codebooks(curve: mixed.Choice) -> mixed.Choice:
    """What else a site can have."""
    kept = [
        i for i, e in enumerate(curve.entries) if e is None or e.weight.kind != "vq"
    ]  # fmt: skip
    return replace(
        curve,
        entries=tuple(curve.entries[i] for i in kept),
        options=tuple(curve.options[i] for i in kept),
    )


def made(work: Version, name: str, what: str, plan: Plan) -> Row:
    """A row for a plan."""
    lowered = with_formats(work, plan)
    sites = work.sites
    stored = sum(
        plan.quantize[n].size_bytes(s.n, s.k) if n in plan.quantize else s.float_bytes
        for n, s in sites.items()
    )
    entropies = [
        (part.entropy(), sites[part.site].size)
        for part in {p.site: p for _, p in stored_parts(lowered.model) if p.codes}.values()
        if plan.quantize[part.site].weight.only_stored
    ]
    weights = sum(size for _, size in entropies)
    return {
        "model": name,
        "what": what,
        "bits": 8 * stored / sum(s.size for s in sites.values()),
        "bytes": io.serialized_bytes(lowered.model),
        "entropy": sum(e * size for e, size in entropies) / weights if weights else None,
        **judged(work, Session(lowered.model, label=what)),
        "load": load_ms(lowered.model) - load_ms(work.model),
    }  # fmt: skip


def load_ms(model: Any) -> float:
    """Median time in which a session is made from bytes."""
    data = io.to_bytes(model)
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        Session(data, label="load")
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def show(rows: Sequence[Row]) -> None:
    """Markdown, a table per model."""
    for model in dict.fromkeys(r["model"] for r in rows):
        print(f"\n### {model}\n")
        print("| formats | bits | entropy | MB | metric | output error | load, ms more |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for r in (r for r in rows if r["model"] == model):
            cells = [
                r["what"], f"{r['bits']:.2f}", _number(r.get("entropy"), 2),
                f"{r['bytes'] / 1e6:.3f}", f"{r['metric']:.4f}", _number(r.get("output"), 5),
                _number(r.get("load"), 0),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["glyph_vit", "stdlib_lm"])
    parser.add_argument("--only", default="", choices=["", "uniform", "mixed"])
    parser.add_argument("--averages", nargs="+", type=float, default=AVERAGES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", nargs="+", type=Path)
    args = parser.parse_args()
    if args.show:
        rows = [row for file in args.show for row in json.loads(file.read_text())]
    else:
        rows = []
        for name in args.models:
            for row in measured(name, args.only, args.averages):
                rows.append(row)
                print(row["model"], row["what"], file=sys.stderr, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    show(rows)


if __name__ == "__main__":
    main()
