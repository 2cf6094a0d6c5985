"""Every model of tests/zoo and models/ as a torch module: agreement with onnxruntime, and speed.

python benchmarks/torch_modules.py [NAME ...]

Columns: largest difference of an output from onnxruntime's, over the largest number in it; the same
for onnxruntime with every weight moved by one unit in its last place, up or down at random; trained
parameters, and how many of them get no gradient; seconds of a run and of its backward pass, and of
a run in onnxruntime (best of 3).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from lwqc.learn.to_torch import module_of
from lwqc.model import io
from lwqc.runtime.data import open_data
from lwqc.runtime.session import Session
from tests.zoo.materialize import materialize, sample_inputs

ROOT = Path(__file__).parents[1]
FILES = [
    *sorted((ROOT / "tests" / "zoo").glob("*.onnx")),
    *sorted((ROOT / "models").glob("*.onnx")),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these models")
    names = parser.parse_args().names
    columns = ["model", "difference", "of one ulp", "parameters", "no gradient"]
    table = Table(*columns, "run s", "backward s", "onnxruntime s")
    for file in FILES:
        if not names or any(file.name.startswith(n) for n in names):
            table.add_row(file.stem, *row(file))
            print(file.stem, file=sys.stderr)
    Console().print(table)


def row(file: Path) -> list[str]:
    """What the table says of a model."""
    model, feeds = opened(file)
    session = Session(model)
    reference = session(feeds)
    moved = Session(with_moved_weights(model))(feeds)
    module = module_of(model)
    with torch.no_grad():
        found = {n: v.numpy() for n, v in module(**feeds).items()}
        run = best(lambda: module(**feeds))
    floats = [v for v in module(**feeds).values() if v.requires_grad]
    start = time.perf_counter()
    sum(v.float().square().mean() for v in floats).backward()
    backward = time.perf_counter() - start
    parameters = list(module.parameters())
    dead = sum(p.grad is None for p in parameters)
    return [
        f"{worst(found, reference):.1e}",
        f"{worst(moved, reference):.1e}",
        str(len(parameters)),
        str(dead),
        f"{run:.3f}",
        f"{backward:.3f}",
        f"{best(lambda: session(feeds)):.3f}",
    ]


def opened(file: Path) -> tuple[ir.Model, dict[str, Any]]:
    """A model and one set of inputs."""
    if file.parent.name == "models":
        model = io.load(file)
        return model, open_data("random:1", model).first()
    built = materialize(file)
    inputs = {v.name for v in built.graph.input}
    feeds = {n: v for n, v in sample_inputs(file, batch=1).items() if n in inputs}
    return ir.serde.deserialize_model(built), feeds


def with_moved_weights(model: ir.Model) -> ir.Model:
    """Every float weight moved by one unit in its last place."""
    made, rng = model.clone(), np.random.default_rng(0)
    for value in made.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype is ir.DataType.FLOAT and tensor.size > 1:
            old = io.read_array(tensor)
            ends = np.where(rng.random(old.shape) < 0.5, np.inf, -np.inf).astype(np.float32)
            value.const_value = ir.tensor(np.nextafter(old, ends), name=value.name)
    return made


def worst(found: dict[str, Any], reference: dict[str, Any]) -> float:
    """Largest difference over the largest number of its output."""
    return max(
        float(np.abs(found[n].astype(np.float64) - v).max() / max(np.abs(v).max(), 1e-30))
        for n, v in reference.items()
        if v.size
    )


def best(run: Callable[[], Any]) -> float:
    """Seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
