"""What was measured of the activations of one version of a model."""

from __future__ import annotations

from lwqc.compile.version import Version
from lwqc.runtime.stats.ranges import Range

Shape = tuple[int, ...]


def activation_ranges(work: Version) -> dict[tuple[str, str], Range]:
    """Ranges that are known, by method and tensor."""
    return work.facts.get("ranges of activations", dict[tuple[str, str], Range])


def tensor_shapes(work: Version) -> dict[str, dict[str, Shape]]:
    """Shapes that are known, by inputs that are served and tensor."""
    return work.facts.get("shapes of activations", dict[str, dict[str, Shape]])
