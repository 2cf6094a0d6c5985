"""Experts of a mixture: merged, and taken out, as many left; error of the outputs.

    python -m benchmarks.experts

The skeleton of Mixtral (`tests/zoo`, two layers of four experts, two taken) with made-up weights:
`apart`: every expert by itself. `alike`: all are one expert with that share of noise in its
squares, as where one dense network was copied, hidden units in an order of their own. Calibrated on
four batches of random ids, judged on four others: squared error of the logits, over that of a
model whose experts all give 0.
`merged` is `--merge-experts`, `weights alone` the same where all experts count alike, `removed` is
`lwqc prune --group ROUTER=SHARE --statistics` by `obspa` (refitted) and `spa-l2`, `least chosen`
takes out those that the data chooses least.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lwqc.compile.merged_experts import experts_of
from lwqc.compile.prunable import Prunable
from lwqc.compile.steps.fewer_experts import hidden_units, with_fewer_experts
from lwqc.decide.compress import open_version
from lwqc.decide.fewer_experts import choose_experts
from lwqc.decide.structural import channel_job
from lwqc.graph.mixtures import find_mixtures
from lwqc.model.edit import replace_stored
from lwqc.model.unused import RemoveUnused
from lwqc.model.weights import stored_tensor
from lwqc.passes.prune_channels import prune_channels
from lwqc.plans.goals import Goals
from lwqc.plans.recipe import ExpertRecipe, find
from lwqc.runtime.session import Session
from tests.zoo.materialize import materialize

SKELETON = Path(__file__).parents[1] / "tests/zoo/mixtral.dynamo.onnx"
EXPERTS, BATCHES = 4, 4
Feeds = list[dict[str, np.ndarray]]


def main() -> None:
    """Print a table."""
    plain = ir.from_proto(materialize(SKELETON))
    fit, judge = feeds(plain, 0), feeds(plain, 1)
    print("| experts | left | merged | weights alone | removed, obspa | spa-l2 | least chosen |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    made = {"apart": plain, **{f"alike, {n:.0%} noise": alike(plain, n) for n in (0.5, 0.1)}}
    for label, model in made.items():
        wanted = [logits(model, one) for one in judge]
        without = error(wanted, silent(model), judge)
        for left in (3, 2, 1):
            found = [error(wanted, other, judge) / without for other in ways(model, left, fit)]
            cells = [f"{x:.4f}" for x in found] + ["cannot be"] * (5 - len(found))
            print(f"| {label} | {left} | {' | '.join(cells)} |", flush=True)


def ways(model: ir.Model, left: int, fit: Feeds) -> Iterator[ir.Model]:
    """The model with fewer experts, in the order of the columns."""
    for work in (open_version(model, data=fit), open_version(model)):
        entries, _ = choose_experts(work, ExpertRecipe(keep=left))
        yield with_fewer_experts(work, entries).model
    if left < 2:  # as many as are taken have to stay
        return
    groups = [f"{name}:0" for name in routers(model)]
    share = dict.fromkeys(groups, 1 - left / EXPERTS)
    for recipe in ("obspa", "spa-l2"):
        work = open_version(model, data=fit, skip_checks=True)
        options = {"groups": share, "statistics": True, "ratio": 0.0}
        yield channel_job(find(recipe), Goals(), **options)(work).make().model
    entries, _ = choose_experts(open_version(model, data=fit), ExpertRecipe(keep=left))
    prunable = Prunable(model)
    gone = {
        group: [int(i) for i in np.argsort(entry.shares)[: EXPERTS - left]]
        for group, entry in zip(groups, entries, strict=True)
    }
    prune_channels(prunable.groups, gone)
    RemoveUnused()(prunable.model)
    yield prunable.model


def silent(model: ir.Model) -> ir.Model:
    """Without what experts give: their second weights are 0."""
    copy = model.clone()
    for mixture in find_mixtures(copy.graph)[0]:
        last = mixture.tables[-1]
        tensor = stored_tensor(last)
        assert tensor is not None
        replace_stored(last, ir.tensor(np.zeros_like(tensor.numpy()), name=last.name))
    return copy


def routers(model: ir.Model) -> list[str]:
    """Weights of the routers, from the first layer on."""
    return [name for name in model.graph.initializers if name.endswith("mlp.gate.weight")]


def alike(model: ir.Model, noise: float) -> ir.Model:
    """Experts that are the first one with noise, in other orders."""
    work = open_version(model.clone())
    rng = np.random.default_rng(0)
    for mixture in find_mixtures(work.model.graph)[0]:
        units = hidden_units(work, mixture)
        assert units is not None
        first, *others = experts_of(mixture)
        rows = [first]
        for other in others:
            mixed = [
                (1 - noise) ** 0.5 * a + noise**0.5 * b for a, b in zip(first, other, strict=True)
            ]
            rows.append(units.ordered(tuple(mixed), rng.permutation(units.count)))
        for number, table in enumerate(mixture.tables):
            array = np.stack([row[number] for row in rows])
            replace_stored(table, ir.tensor(array, name=table.name))
    return work.model


def feeds(model: ir.Model, seed: int) -> Feeds:
    """Random ids."""
    rng = np.random.default_rng(seed)
    names = [v.name or "" for v in model.graph.inputs]
    made = [{name: np.ones((4, 32), np.int64) for name in names} for _ in range(BATCHES)]
    return [{**one, "input_ids": rng.integers(0, 1000, (4, 32))} for one in made]


def logits(model: ir.Model, given: dict[str, np.ndarray]) -> np.ndarray:
    """The first output."""
    return next(iter(Session(model, label="experts")(given).values())).astype(np.float64)


def error(wanted: list[np.ndarray], model: ir.Model, judge: Feeds) -> float:
    """Of the logits, relative."""
    lost = sum(np.square(logits(model, f) - w).sum() for f, w in zip(judge, wanted, strict=True))
    return float(lost / sum(np.square(w).sum() for w in wanted))


if __name__ == "__main__":
    main()
