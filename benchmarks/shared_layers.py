"""Do adjacent layers have weights that they could share? Beside taking one of them out.

    python -m benchmarks.shared_layers [--models NAME ...] [--json FILE]

Each residual branch and the next one of its kind get the same matrices, biases and norms staying
their own: those of the first, those of the second, or the mean of both, whichever loses least on
the very data that judges. Hidden units or heads of the second are matched to those of the first
beforehand, by the best assignment of their weights. Either way the file saves one layer's matrices,
as it does without one of the two branches, which also saves its time: `dropped` is the better of
those two. Losses are those of `benchmarks.claims`; `cosine` is between the matched matrices.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks.claims import LM, VIT, losses
from lwqc.compile.prunable import Prunable
from lwqc.decide.compress import open_version
from lwqc.graph.branch_kinds import TypedBranch, branch_tree
from lwqc.graph.groups import Group
from lwqc.model.tensor_bytes import read_array
from lwqc.model.weights import stored_tensor
from lwqc.passes.remove_branches import RemoveBranches

ROOT = Path(__file__).parents[1]
Weights = dict[str, NDArray[np.floating]]  # of a branch, by name, in the order of its nodes
Row = dict[str, Any]


def weights_of(branch: TypedBranch) -> Weights:
    """All stored floats that the branch reads."""
    found: Weights = {}
    for node in branch.branch.nodes:
        for value in node.inputs:
            tensor = stored_tensor(value)
            if value is not None and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                found[value.name or ""] = read_array(tensor)
    return found


def unit_weights(group: Group, weights: Weights) -> NDArray[np.floating]:
    """What belongs to each index of a group, as a row."""
    rows = []
    for index in range(group.size):
        parts = [
            np.take(weights[o.name], positions, o.axis).ravel()
            for o, positions in group.slices(index)
        ]
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def matched(first: Weights, second: Weights, groups: list[tuple[Group, Group]]) -> Weights:
    """The second branch's weights with hidden units and heads in the order of the first's."""
    result = dict(second)
    for one, other in groups:
        a, b = unit_weights(one, first), unit_weights(other, result)
        _, order = linear_sum_assignment(-(a @ b.T))
        before = dict(result)
        for occurrence in other.occurrences:
            owner = other.owner(occurrence)
            places = np.arange(len(owner))
            for index, taken in enumerate(order):
                places[owner == index] = np.flatnonzero(owner == taken)
            result[occurrence.name] = np.take(result[occurrence.name], places, occurrence.axis)
        assert all(v.shape == before[n].shape for n, v in result.items())
    return result


def with_weights(model: ir.Model, values: Mapping[str, NDArray[np.floating]]) -> ir.Model:
    """A copy with other stored tensors."""
    copy = model.clone()
    for name, array in values.items():
        copy.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return copy


def dropped(model: ir.Model, name: str, branch: TypedBranch) -> float:
    """Loss without a branch."""
    copy = model.clone()
    RemoveBranches([branch.name]).call(copy)
    return float(losses(name, copy).mean())


def pairs(name: str) -> Iterator[Row]:
    """A row for each pair of neighbours of one kind."""
    prunable = Prunable(open_version(ROOT / f"models/{name}.onnx").model)
    model = prunable.model
    whole = float(losses(name, model).mean())
    tree = branch_tree(model.graph)
    known: dict[str, float] = {}
    for kind in sorted({b.kind for b in tree.branches}):
        branches = [b for b in tree.branches if b.kind == kind]
        for b in branches:
            known[b.name] = dropped(model, name, b)
        for a, b in pairwise(branches):
            first, second = weights_of(a), weights_of(b)
            groups = [
                [g for g in prunable.groups if "head dims" not in g.marks
                 and {o.name for o in g.occurrences} <= set(w)]
                for w in (first, second)
            ]  # fmt: skip
            moved = matched(first, second, list(zip(*groups, strict=True)))
            same = [
                (x, y) for x, y in zip(first, moved, strict=True) if first[x].ndim > 1
            ]  # fmt: skip
            exact = float(losses(name, with_weights(model, moved)).mean())
            assert abs(exact - whole) < 1e-3, (exact, whole)  # another order of the same units
            found = {}
            for how, share in (("first", 0.0), ("second", 1.0), ("mean", 0.5)):
                tied = dict(moved)
                for x, y in same:
                    tied[x] = tied[y] = (1 - share) * first[x] + share * moved[y]
                found[how] = float(losses(name, with_weights(model, tied)).mean())
            flat = [
                np.concatenate([w[n].ravel() for n in names])
                for w, names in ((first, [x for x, _ in same]), (moved, [y for _, y in same]))
            ]
            cosine = float(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
            best = min(found, key=found.__getitem__)
            yield {
                "model": name, "kind": kind, "pair": f"{a.block}, {b.block}", "cosine": cosine,
                "whole": whole, "shared": found[best], "how": best,
                "dropped": min(known[a.name], known[b.name]),
            }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[VIT, LM], choices=[VIT, LM])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[Row] = []
    for name in chosen.models:
        for row in pairs(name):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    print("| model | kind | blocks | cosine | whole | shared | how | dropped |")
    print("| --- | --- | --- | ---: | ---: | ---: | --- | ---: |")
    for r in rows:
        print(
            f"| {r['model']} | {r['kind']} | {r['pair']} | {r['cosine']:.3f} | {r['whole']:.3f} "
            f"| {r['shared']:.3f} | {r['how']} | {r['dropped']:.3f} |"
        )


if __name__ == "__main__":
    main()
