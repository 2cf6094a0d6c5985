"""The pipelines that a plan runs, as text."""

from __future__ import annotations

from lwqc.backends.target import lower_pipeline
from lwqc.passes.cleanup import clean_pipeline, merge_pipeline
from lwqc.plans.plan import Plan


def pipelines_of(plan: Plan) -> dict[str, str]:
    """Text by what it is for, in the order in which they run.

    `lwqc opt` runs the first two as they are; passes of the last need what else the plan holds.
    """
    found: dict[str, str] = {}
    if (clean := plan.clean) is not None:
        passes = clean_pipeline(
            fuse=clean.fuse, copies=clean.copies, folding=clean.folding, accept=clean.accept
        )
        found["clean"] = str(passes)
        if clean.merge:
            found["merge"] = str(merge_pipeline(clean.folding))
    family = plan.target.partition("-")[0]
    found["lower"] = str(lower_pipeline(family, plan))
    return found
