"""The float graph that is lowered: as it is, cleaned up, or with channels gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from lwqc.compile.candidates import with_formats
from lwqc.compile.cleaned import cleaned, cleaning, cleanup_for
from lwqc.compile.losses import moved
from lwqc.compile.version import Version
from lwqc.decide import planning
from lwqc.decide.float_plan import with_float_type, with_floats
from lwqc.decide.profiles import with_profile
from lwqc.errors import LwqcError
from lwqc.passes.grouped_experts import picks_experts
from lwqc.plans.plan import CleanUp, Plan, Pruning, Relaxation
from lwqc.runtime.served import no_slower, relative_times
from lwqc.runtime.session import Session

SAME = 1e-8  # squared error over energy of outputs that count as those of the original
# What is tried, and kept where the data shows no difference.
RELAXED: tuple[Relaxation, ...] = ("finite-masks",)
_SURE = {"fuse-attention", "grouped-experts"}
SECONDS = 1.0  # of timing per model and shape, of those that are compared last


@dataclass(frozen=True)
class Base:
    """A float graph to lower.

    left: what of the original could not be rewritten, and why. prune: channels that went after it
    was cleaned up.
    """

    work: Version
    clean: CleanUp | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    prune: Pruning | None = None

    def ready(self) -> Base:
        """With the float type of the target decided, which formats are compared with."""
        return replace(self, work=with_float_type(self.work))

    def stamped(self, plan: Plan) -> Plan:
        """The plan with what leads from the original to this graph."""
        plan = with_profile(self.work, with_floats(self.work, plan), {})
        left = {**self.left, **plan.untransformed}
        led_here = {"clean": self.clean, "prune": self.prune}
        return plan.model_copy(update={**led_here, "untransformed": left})


def float_base(work: Version, wanted: CleanUp, allowance: float = 1.0) -> Base:
    """The graph cleaned up, or as it is where that fails, changes outputs or does not pay.

    allowance: how much longer it may take, as a factor.
    """
    base, done = _checked(work, wanted)
    if base.clean is None or done is None or not work.job.timed:
        return base
    relative = relative_times(
        [work.begun.timed_session, done], work.job.data.serve, SECONDS, 1, allowance
    )[1]
    if no_slower([r / allowance for r in relative]):
        return base
    if "grouped-experts" in base.clean.changes:  # which are slower for few tokens of many experts
        return float_base(work, wanted.model_copy(update={"experts": False}), allowance)
    share = ", ".join(
        f"{r:.2f} of its time at {s.label}"
        for r, s in zip(relative, work.job.data.serve, strict=True)
    )
    return Base(work, None, {work.name: f"not cleaned up: it would take {share}"})


def cleaned_base(work: Version, wanted: CleanUp) -> Base:
    """The graph cleaned up, or as it is where that fails or changes the outputs."""
    return _checked(work, wanted)[0]


def _checked(work: Version, wanted: CleanUp) -> tuple[Base, Session | None]:
    """The same, with a session of a graph that is cleaned up."""
    try:
        clean, left = cleaning(work, wanted)
        if not clean.changes:
            return Base(work, None, left), None
        base = Base(cleaned(work, clean), clean, left)
        session = _lowered_float(base.work)
        error = moved(base.work, session)
    except (ir.passes.PassError, LwqcError) as failure:  # the graph as it is will do
        return Base(work, None, {work.name: f"not cleaned up: {failure}"}), None
    if error <= SAME:
        return base, session
    if clean.relaxed:
        return _checked(work, wanted.model_copy(update={"accept": ()}))
    reason = f"not cleaned up: outputs would move by {error**0.5:.2g} of their size"
    return Base(work, None, {work.name: reason}), None


def wanted(work: Version, *, merge: bool) -> CleanUp:
    """What is not exact for every input only where there is data to check it on."""
    accept = RELAXED if work.job.data.fit.kind == "real" else ()
    return cleanup_for(work, merge=merge, accept=accept)


def fused_base(work: Version) -> Base:
    """The graph cleaned up where that pays for sure; found without timing.

    So it does where attention becomes one operator, or each expert gets a weight of its own.
    """
    base = cleaned_base(work, wanted(work, merge=False))
    fused = base.clean is None or not _SURE.isdisjoint(base.clean.changes)
    return (base if fused else Base(work)).ready()


def copies_experts(work: Version) -> bool:
    """Whether a clean-up gives experts weights of their own; not of a model that is never whole."""
    can = work.job.target.groups_experts and work.job.room is None
    return can and picks_experts(work.model.graph)


def _lowered_float(work: Version) -> Session:
    return work.job.load(with_formats(work, planning.unchanged(work)).model, label="cleaned up")
