"""Puts a model into the form that a target runs best, without choosing any new number format."""

from __future__ import annotations

from typing import cast, get_args

from lwqc.backends.target import FloatType
from lwqc.compile.candidates import with_formats
from lwqc.compile.cleaned import cleaned, cleaning, cleanup_for
from lwqc.compile.lifted import lifted
from lwqc.compile.steps.restored import choose_clips, demoted, is_quantized, restored, restored_plan
from lwqc.compile.version import Version
from lwqc.decide.float_plan import with_floats
from lwqc.decide.profiles import with_profile
from lwqc.errors import InputError, SessionError
from lwqc.model.extensions import expected
from lwqc.passes.widen_floats import has_low_floats
from lwqc.plans.plan import Plan, Profile, Source
from lwqc.runtime.session import Session, SessionSettings

_RESTORED = 26  # bytes that each number of a weight takes while codes become floats and codes again
_ROUNDS = 3  # static, weight only, float


def lower_plan(
    work: Version,
    *,
    floats: str | None = None,
    boundary: bool = False,
    profile: dict[str, Profile] | None = None,
) -> Plan:
    """The plan that brings a model to its target.

    Formats of a quantized model are kept where the target has them. floats: the type to compute
    in; the target's own by default. boundary: graph inputs and outputs get it too. profile: sizes
    of dynamic dimensions that engines are built for. Raises InputError.
    """
    plan = Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe="lower",
        rewrites=work.job.target.rewrites,
        caches=work.job.kv_cache,
    )
    if floats is not None and floats not in get_args(FloatType):
        raise InputError(f"--floats {floats}: {expected(floats, get_args(FloatType))}")
    if work.job.target.floats == "float32" and floats not in (None, "float32"):
        raise InputError(
            f"--floats {floats}: target {plan.target} computes in float32; it has no fast kernels"
        )
    quantized = is_quantized(work.model)
    if quantized and work.job.checked_whole:
        _check_that_it_runs(work)
    # The CPU computes 16-bit floats in float32, with casts around every operator.
    if quantized or (work.job.target.floats == "float32" and has_low_floats(work.model)):
        restore = choose_clips(work)
        plan = plan.model_copy(update={"restore": restore})
        work = restored(work, restore)
        if (room := work.job.room) is not None:
            for site in work.analysis.sites:
                room.check(_RESTORED * site.size, f"{site.name}, as floats and as codes,")
    if quantized:
        work, notes = lifted(work)
        plan = plan.model_copy(update={"opset": work.raised}).noted(*notes)
    # Merged layers would have no format of their own any more.
    clean, left = cleaning(work, cleanup_for(work, merge=not quantized, copies=False))
    work = cleaned(work, clean)
    plan = plan.model_copy(update={"clean": clean, "untransformed": dict(left)})
    plan = restored_plan(work, plan)
    plan = with_floats(work, plan, cast("FloatType | None", floats))
    if plan.quantize and work.job.checked_whole:
        for _ in range(_ROUNDS):
            wrong = work.job.target.misplaced(with_formats(work, plan))
            if not wrong:
                break
            plan = demoted(work, plan, wrong)
    if boundary:
        if plan.floats is None:
            raise InputError("inputs and outputs can only change type together with the model")
        plan = plan.model_copy(update={"floats": plan.floats.model_copy(update={"boundary": True})})
    return with_profile(work, plan, profile or {})


def _check_that_it_runs(work: Version) -> None:
    """Raises InputError for a file that loads and fails in its first run.

    NNCF 3.4 writes such files: scales of its convolutions have three dimensions. What only the
    runtime's own fusions break is no fault of the file.
    """
    try:
        Session(work.begun.loadable, SessionSettings(optimize=False), label=work.name)(
            work.job.data.judge[0]
        )
    except SessionError as error:
        raise InputError(f"{error}; the file cannot be used as it is") from error
