"""What can be pruned of every architecture in tests/zoo, how long it takes to find out, and
whether half of it can be removed.

python benchmarks/prune_zoo.py [NAME ...] [--oracles] [--peer] [--json FILE]

Columns: groups (of them mixed by a normalisation), share of the linear weights (Conv, MatMul, Gemm)
of which at least one axis, and of which both axes, can shrink; seconds for the shapes and for the
algebra (median of 5); then half of every group goes, by L2 magnitude: MACs and parameters left,
and whether the file passes the checker with strict shape inference, loads and runs.
--oracles also checks each group alone (minutes). --peer runs onnxsim's structured and head pruning
(`pip install onnxsim`) on the same file, half of every layer and head: MACs left, and whether the
result runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from lwqc.compile.execute import execute
from lwqc.compile.prunable import Prunable
from lwqc.decide.channels import decide
from lwqc.decide.compress import open_version
from lwqc.decide.prune_options import PruneOptions
from lwqc.graph.cost import node_costs, total
from lwqc.graph.groups import Groups, find_groups
from lwqc.graph.linear_operand import Operand, linear_operand
from lwqc.graph.shapes import declared_shapes, shapes_at
from lwqc.plans.goals import Goals
from lwqc.runtime.session import Session
from lwqc.testing.oracles import Oracle, half
from tests.zoo.materialize import materialize, sample_inputs

ZOO = Path(__file__).parents[1] / "tests" / "zoo"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these models")
    parser.add_argument("--oracles", action="store_true", help="check each group alone")
    parser.add_argument("--peer", action="store_true", help="onnxsim beside it")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    chosen = parser.parse_args()
    files = sorted(ZOO.glob("*.onnx"))
    if chosen.names:
        files = [f for f in files if any(f.name.startswith(n) for n in chosen.names)]
    rows = []
    for file in files:
        rows.append(row(file, chosen.oracles, chosen.peer))
        print(file.name, rows[-1], file=sys.stderr, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


def row(file: Path, oracles: bool, peer: bool) -> dict[str, Any]:
    """All measurements of one model."""
    proto = materialize(file, whole=True)
    feeds = sample_inputs(file)
    model = ir.from_proto(proto)
    prunable = Prunable(model)
    found, shapes = prunable.groups, prunable.shapes
    one, both = coverage(found)
    result: dict[str, Any] = {
        "model": file.stem,
        "groups": len(found),
        "statistics": sum(g.statistics for g in found),
        "one_axis": one,
        "both_axes": both,
        "shapes_s": median(lambda: declared_shapes(model)),
        "algebra_s": median(lambda: find_groups(prunable.model, shapes)),
    }
    result |= halved(model, feeds)
    if peer:
        result |= halved_by_onnxsim(proto, feeds)
    if oracles:
        result["oracles"] = one_by_one(model, feeds)
    return result


def coverage(groups: Groups) -> tuple[float, float]:
    """Share of linear weights, by elements, with one and with both channel axes prunable."""
    sizes = {"all": 0, "one": 0, "both": 0}
    for node in groups.analysis.graph:
        operand = linear_operand(node)
        dims = groups.analysis.operand(node, 1)
        if not isinstance(operand, Operand) or dims is None:
            continue
        elements = operand.out * operand.features
        free = [any(not leaf.frozen for leaf in dim.leaves()) for dim in dims[:2]]
        sizes["all"] += elements
        sizes["one"] += elements * any(free)
        sizes["both"] += elements * all(free)
    return sizes["one"] / max(sizes["all"], 1), sizes["both"] / max(sizes["all"], 1)


def median(run: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def halved(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """Half of every group removed, checked and run."""
    work = open_version(model, data=[feeds])
    options = PruneOptions(ratio=0.5, by="channels", score="l2", statistics=True)
    decision = decide(work, options)
    done = execute(work, Goals(), decision.plan)
    assert done.pruned is not None
    cost = done.pruned.before.cost(feeds)
    proto = ir.to_proto(done.model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    outputs = Session(done.model, label="pruned")(feeds)
    kept = decision.keep
    return {
        "macs_left": cost.macs(kept) / max(cost.macs({}), 1),
        "parameters_left": cost.parameters(kept) / max(cost.parameters({}), 1),
        "runs": all(o.size for o in outputs.values()),
    }


def halved_by_onnxsim(proto: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """onnxsim at half of every layer and head, magnitude, as its documentation shows."""
    import onnxsim.pruning as peer

    start = time.perf_counter()
    try:
        pruned = peer.apply_structured_pruning(proto, 0.5)
        pruned = peer.apply_attention_head_pruning(pruned, 0.5)
        seconds = time.perf_counter() - start
        ran = all(o.size for o in Session(ir.from_proto(pruned), label="onnxsim")(feeds).values())
        left = macs(ir.from_proto(pruned), feeds) / macs(ir.from_proto(proto), feeds)
    except Exception as error:  # whatever it is, it is the peer's result on this file
        return {"onnxsim_macs_left": None, "onnxsim_runs": type(error).__name__, "onnxsim_s": None}
    return {"onnxsim_macs_left": left, "onnxsim_runs": ran, "onnxsim_s": seconds}


def macs(model: ir.Model, feeds: dict[str, Any]) -> int:
    """MACs of the nodes whose cost can be told, at these input sizes."""
    shapes = shapes_at(model, {name: array.shape for name, array in feeds.items()})
    return total(node_costs(model.graph, shapes)).known_macs


def one_by_one(model: ir.Model, feeds: dict[str, Any]) -> str:
    """Groups for which permutation, and zeroed-equals-removed or commutation, hold alone."""
    prunable = Prunable(model)
    oracle = Oracle(prunable.model, prunable.groups, feeds)
    good = 0
    for group in prunable.groups:
        errors = [oracle.permutation([group])]
        removed = half([group])
        if removed:
            check = oracle.commutation if group.statistics else None
            errors.append(check([group], removed) if check else oracle.zeroed_is_removed(removed))
        good += max(errors) <= oracle.tolerance
    return f"{good}/{len(prunable.groups)}"


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(title="Prunable share of every architecture")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for r in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in r.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
