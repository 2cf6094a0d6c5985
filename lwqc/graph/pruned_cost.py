"""Parameters and multiply-accumulates that are left when channels go, without pruning anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lwqc.graph.axes import Factor, Masks
from lwqc.graph.axis_analysis import Use
from lwqc.graph.cost import TotalCost, node_costs, total
from lwqc.graph.groups import Groups, is_weight

Keep = dict[str, NDArray[np.bool_]]  # group -> which of its channels stay


class PrunedCost:
    """Costs of one model as a function of what is removed."""

    def __init__(self, groups: Groups, shapes: Mapping[str, Sequence[int]]) -> None:
        """shapes: sizes of all tensors at the input sizes that the MACs are for."""
        self._groups = groups
        self._shapes = {name: tuple(sizes) for name, sizes in shapes.items()}
        self._dims: dict[str, Sequence[Factor]] = {}
        for key, dims in (*groups.analysis.dims.items(), *groups.analysis.stored.items()):
            value = key.value if isinstance(key, Use) else key
            if value.name:
                self._dims[value.name] = dims
                self._shapes.setdefault(value.name, tuple(d.size for d in dims))
        self._weights = {
            name: dims
            for key, dims in groups.analysis.stored.items()
            if is_weight(value := key.value if isinstance(key, Use) else key)
            and (name := value.name)
        }

    def macs(self, keep: Mapping[str, NDArray[np.bool_]]) -> int:
        """Multiply-accumulates of the nodes whose cost can be told."""
        return self.total(keep).known_macs

    def parameters(self, keep: Mapping[str, NDArray[np.bool_]]) -> int:
        """Elements of all weights. keep: group name -> mask [size]."""
        masks = self._masks(keep)
        counts = (
            int(np.prod([_kept(d, masks, d.size) for d in dims])) for dims in self._weights.values()
        )
        return sum(counts)

    def total(self, keep: Mapping[str, NDArray[np.bool_]]) -> TotalCost:
        """MACs node by node; its parameters are those before pruning."""
        masks = self._masks(keep)
        shapes = dict(self._shapes)
        for name, dims in self._dims.items():
            if any(masks.touches(d) for d in dims):
                shapes[name] = tuple(
                    _kept(d, masks, size) for d, size in zip(dims, shapes[name], strict=True)
                )
        return total(node_costs(self._groups.analysis.graph, shapes))

    def _masks(self, keep: Mapping[str, NDArray[np.bool_]]) -> Masks:
        return Masks({self._groups.by_name[name].factor: mask for name, mask in keep.items()})


def _kept(dim: Factor, masks: Masks, size: int) -> int:
    """Size of a dimension after pruning, at a setting where it was `size`."""
    if not masks.touches(dim):
        return size
    return size * int(masks.of(dim).sum()) // dim.size
