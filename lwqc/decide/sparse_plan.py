"""Which weights get 2:4 sparsity."""

from __future__ import annotations

from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.sites import MIN_WEIGHTS
from lwqc.passes.sparsify import sparse_refusal
from lwqc.plans.plan import Plan, SparseEntry
from lwqc.plans.recipe import Recipe


def with_sparsity(work: Version, plan: Plan, recipe: Recipe) -> Plan:
    """The plan with 2:4 sparsity on every weight that can have it; the others are told why not.

    Raises InputError for a target without sparse kernels, and for a method that lacks data.
    """
    if recipe.sparse == "none":
        return plan
    if not work.job.target.sparse:
        raise InputError(
            f"recipe {recipe.name}: target {work.job.target.name} has no sparse kernels"
        )
    looks = recipe.sparse != "magnitude"
    if looks and not work.job.data.fit.given:
        raise InputError(f"recipe {recipe.name} looks at the data: give --data")
    entries: dict[str, SparseEntry] = {}
    kept: dict[str, str] = {}
    for site in work.analysis.sites:
        reason = sparse_refusal(site)
        if site.size < MIN_WEIGHTS:
            reason = f"has only {site.size} weights"
        if not reason and looks:
            reason = work.grams.reason(site.name) or ""
        if reason:
            kept[site.name] = f"dense: {reason}"
        elif recipe.sparse == "exchange":
            entries[site.name] = SparseEntry(method="magnitude", refine=True)
        else:
            entries[site.name] = SparseEntry(method=recipe.sparse)
    return plan.model_copy(update={"sparse": entries, "kept_float": {**plan.kept_float, **kept}})
