"""Models that are quantized already: the formats that they have, in kernels of the target.

Quantizers write operators on codes for one kind of processor. On another they may be slow by
factors: int8 activations have no fast product on x86-64, where onnxruntime's tools write them by
default. As floats, with what is known of its formats, such a model is lowered like any other.
"""

from __future__ import annotations

from lwqc.compile.execute import execute
from lwqc.compile.losses import full_drop
from lwqc.compile.steps.restored import is_quantized
from lwqc.compile.version import Version
from lwqc.decide.base import SECONDS
from lwqc.decide.lower import lower_plan
from lwqc.errors import InputError, SessionError
from lwqc.model import io
from lwqc.plans.goals import Goals
from lwqc.plans.plan import Plan
from lwqc.runtime.measure import NOISE
from lwqc.runtime.served import no_slower, overall, relative_times

_TAKEN = "it is quantized already: its formats, or what the target has like them, in other kernels"
_NOT_TRIED = "it is quantized already, and its formats were not tried in other kernels"


def with_own_formats(work: Version, plan: Plan, limit: float, *, small: bool = False) -> Plan:
    """The plan, or that of `lwqc lower` where that is faster and loses no more than is allowed.

    Of models that are quantized already, where the target is timed here. limit: the largest drop.
    small: only where it is no larger either. Why it was not tried is a note.
    """
    if not is_quantized(work.model) or not work.job.timed:
        return plan
    if work.is_large:
        return plan.noted(f"{_NOT_TRIED}, as it is large: lwqc lower does")
    try:
        own = lower_plan(work)
        models = [execute(work, Goals(), each).model for each in (own, plan)]
        if small and io.serialized_bytes(models[0]) > io.serialized_bytes(models[1]):
            return plan
        sessions = [work.job.load(model) for model in models]
        drop = full_drop(work, sessions[0])
    except (InputError, SessionError) as error:
        return plan.noted(f"{_NOT_TRIED}: {error}")
    if drop > limit:
        return plan
    taken, others = relative_times(
        [work.begun.timed_session, *sessions], work.job.data.serve, SECONDS
    )[1:]
    if not no_slower(taken) or overall(taken) * NOISE > overall(others):
        return plan
    return own.model_copy(update={"recipe": plan.recipe}).noted(_TAKEN)
