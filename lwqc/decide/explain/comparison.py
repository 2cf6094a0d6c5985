"""What differs between two versions of a model: sizes, groups, branches, sites, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lwqc.decide.explain.inspection import Inspection
from lwqc.graph.cost import total


@dataclass(frozen=True)
class Change:
    """One thing that differs. before, after: None where a version lacks it."""

    what: str
    name: str
    before: object
    after: object


@dataclass(frozen=True)
class Comparison:
    """Two inspected models. changes: by kind (`total`, `operator`, `group`, `branch`, `site`).

    Things are told apart by name, since passes keep the names of what they keep.
    """

    before: Inspection
    after: Inspection
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "before": self.before.name,
            "after": self.after.name,
            "changes": [vars(change) for change in self.changes],
        }


def compare(before: Inspection, after: Inspection) -> Comparison:
    """All differences, in the order of the model before."""
    found = [
        *_changes("total", _totals(before), _totals(after)),
        *_changes("operator", _operators(before), _operators(after)),
        *_changes("group", _groups(before), _groups(after)),
        *_changes("branch", _branches(before), _branches(after)),
        *_changes("site", _sites(before), _sites(after)),
    ]
    return Comparison(before, after, tuple(found))


def _changes(
    what: str, before: Mapping[str, Hashable], after: Mapping[str, Hashable]
) -> Iterable[Change]:
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield Change(what, name, before.get(name), after.get(name))


def _totals(found: Inspection) -> dict[str, Hashable]:
    summed = total(found.costs)
    return {
        "bytes": found.size_bytes,
        "parameters": summed.parameters,
        "MACs": summed.macs,
        "opset": found.opset,
        "inputs": "; ".join(found.inputs),
        "outputs": "; ".join(found.outputs),
    }


def _operators(found: Inspection) -> dict[str, Hashable]:
    counts = Counter(cost.op for cost in found.costs)
    return dict(sorted(counts.items()))


def _groups(found: Inspection) -> dict[str, Hashable]:
    return {group.name: group.size for group in found.groups}


def _branches(found: Inspection) -> dict[str, Hashable]:
    costs = found.branch_costs
    return {b.name: f"{b.kind}, {costs[b.name].parameters:,} parameters"
            for b in found.branches.branches}  # fmt: skip


def _sites(found: Inspection) -> dict[str, Hashable]:
    return {site.name: f"{'x'.join(map(str, site.shape))}" for site in found.sites.sites}
