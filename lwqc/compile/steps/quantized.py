"""The step that encodes weights; the target stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lwqc.compile.steps.sequential import quantize_in_sequence
from lwqc.compile.steps.step import Looks, Made, Step
from lwqc.model import io
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.plans.plan import Plan
from lwqc.plans.wording import entry_words, names_text
from lwqc.quant.methods import DATA_METHODS
from lwqc.runtime.session import statistics_session


def _run(made: Made) -> Made:
    """Each weight by itself, when the target asks for it, or here one after the other."""
    plan, work = made.plan, made.work
    made.check_sites(plan.quantize)
    if not plan.sequential:
        return made
    done = quantize_in_sequence(
        made.model,
        plan.quantize,
        made.weights.get,
        work.job.data.fit,
        statistics_session,
        work.job.report("sequential"),
    )
    weights = EncodedWeights(done.model, io.read_array, known=done.encoded)
    apart = {name: f"not in sequence: {reason}" for name, reason in done.apart.items()}
    plan = plan.model_copy(update={"kept_float": {**apart, **plan.kept_float}})
    return replace(made, plan=plan, model=done.model, own_weights=weights)


def _text(plan: Plan) -> Iterator[str]:
    order = ", each for what those before it give" if plan.sequential else ""
    by_format: dict[str, list[str]] = {}
    for name, entry in plan.quantize.items():
        by_format.setdefault(entry_words(entry), []).append(name)
    lines = (
        f"\n     {len(sites)} to {text}: {names_text(sites)}" for text, sites in by_format.items()
    )
    yield f"{len(plan.quantize)} sites are quantized{order}:{''.join(lines)}"


def _looks(plan: Plan) -> Iterator[Looks]:
    if plan.sequential or any(e.method in DATA_METHODS for e in plan.quantize.values()):
        yield "data"


STEP = Step("quantize", _run, _text, looks=_looks)
