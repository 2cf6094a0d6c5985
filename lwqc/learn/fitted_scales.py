"""All scales and zero points that are fitted, and what has to follow them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from lwqc.learn.activation_grids import LearnedGrid, activation_grids
from lwqc.learn.bias_units import bias_units
from lwqc.learn.code_scales import code_scales, in_units
from lwqc.learn.weights import Uses

OF_BIAS = "a bias of 32 bits is in units of it"


@dataclass(frozen=True)
class FittedScales:
    """Stored scales and zero points that are parameters.

    followers: those that are computed of parameters, by whose. refused: why scales of activations
    stay as they are.
    """

    leaders: Collection[ir.Value] = ()
    followers: Mapping[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict)
    refused: Mapping[ir.Value, str] = field(default_factory=dict)

    def __contains__(self, value: ir.Value) -> bool:
        return value in self.leaders or value in self.followers

    @staticmethod
    def of(model: ir.Model, codes: Collection[ir.Value]) -> FittedScales:
        """Those of the codes of weights, of activations, and of biases in units of both."""
        uses = Uses.of(model)
        units = bias_units(model, uses)
        weights = code_scales(uses, codes, units)
        grids, refused = activation_grids(model, uses, weights | units.keys())
        leader = {scale: scale for scale in weights}
        for grid in grids:
            if _is_unit(grid, uses, units):
                refused |= dict.fromkeys(grid.scales, OF_BIAS)
                continue
            for values in filter(None, (grid.scales, grid.zeros)):
                leader |= dict.fromkeys(values, values[0])
        leaders = {value for value, first in leader.items() if value is first}
        followers: dict[ir.Value, tuple[ir.Value, ...]]
        followers = {v: (first,) for v, first in leader.items() if v is not first}
        for unit, factors in units.items():
            found = tuple(leader[factor] for factor in factors if factor in leader)
            if found:
                followers[unit] = found
        return FittedScales(leaders, followers, refused)


def _is_unit(grid: LearnedGrid, uses: Uses, units: Mapping[ir.Value, tuple[ir.Value, ...]]) -> bool:
    """Whether a bias is in units of its scales, whose own scale cannot follow."""
    decoders = (n for s in grid.scales for n, _ in uses.readers.get(s, ()))
    return any(n.op_type == "DequantizeLinear" and in_units(n, uses, units) for n in decoders)
