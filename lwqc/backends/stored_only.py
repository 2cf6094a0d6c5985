"""Formats that no kernel reads, on whatever runtime folds constants while it loads a model."""

from __future__ import annotations

from lwqc.backends.target import Form
from lwqc.graph.sites import Site
from lwqc.plans.plan import SiteEntry


def stored_only(site: Site, entry: SiteEntry) -> Form | str:
    """`Folded`, or why the entry cannot be had."""
    fmt = entry.weight
    if entry.activation != "none":
        return f"{fmt} weights become floats at load: activations stay float"
    if entry.has_side:
        return f"a branch in float is not made beside {fmt} weights"
    alike = site.n // site.groups
    if fmt.kind == "vq" and site.groups > 1 and alike % fmt.dim:
        return f"{fmt} needs {fmt.dim} outputs with the same inputs, here {alike} have"
    return "Folded"
