"""How data is prepared where a plan is executed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lwqc.plans.options import Data, Preparation
from lwqc.plans.plan import Plan
from lwqc.plans.preprocess import FILES, Preprocess
from lwqc.runtime.sources.opened import holds_samples


def replayed(plan: Plan, data: Data, given: Preparation) -> Preparation:
    """What is given, or else what the plan says, where files of samples are to be prepared.

    Files that the plan names are not read: it may be a stranger's.
    """
    made = plan.data.preprocess if plan.data is not None else ""
    if given is not None or not made or not isinstance(data, (str, Path)):
        return given
    if not holds_samples(Path(data)):
        return None
    unnamed: dict[str, Any] = dict.fromkeys(FILES, "")
    return replace(Preprocess.parse(made), **unnamed)
