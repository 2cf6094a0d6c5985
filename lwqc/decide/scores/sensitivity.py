"""Measured sensitivity: how much the outputs move when one weight is quantized.

Weights under trial are inputs of the session, so one session serves every site.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.graph.sites import Site, find_sites
from lwqc.model.weights import ReadArray, evaluate
from lwqc.runtime.counted import counted
from lwqc.runtime.measure import weighted
from lwqc.runtime.stats.channel_error import ChannelMeter
from lwqc.runtime.stats.collector import Array, Feeds, RunnerFactory


def site_sensitivity(
    model: ir.Model,
    trials: Sequence[tuple[str, ...]],
    replacement: Callable[[str], NDArray[np.float32]],
    data: Iterable[Feeds],
    make_runner: RunnerFactory,
    read: ReadArray,
    progress: Callable[[int, int], None] = lambda done, total: None,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> dict[tuple[str, ...], float]:
    """Output error when the sites of each trial are replaced.

    trials: names of sites, one or several at a time. replacement: site name -> quantized
    weight [N, K] as float32.
    data: few batches; kept in memory together with the outputs of the float model. weights: of
    outputs.

    Returns the error by channel (see `ChannelErrors`), the worst over the outputs, per trial.
    """
    exposed = Exposed.of(model, {name for trial in trials for name in trial}, read)
    run = make_runner(exposed.model)
    base = exposed.originals
    batches = list(counted(data, "the data that is kept"))
    runs = (run({**feeds, **base}) for feeds in batches)
    references = list(counted(runs, "outputs of the original", len(batches)))
    errors: dict[tuple[str, ...], float] = {}
    for trial in trials:
        changed = dict(exposed.changed(name, replacement(name)) for name in trial)
        runs = (run({**feeds, **base, **changed}) for feeds in batches)
        errors[trial] = _relative_error(references, runs, weights)
        progress(len(errors), len(trials))
    return errors


@dataclass(frozen=True)
class Exposed:
    """A model whose weights of some sites are inputs. originals: what they are, by input."""

    model: ir.Model
    originals: dict[str, Array]
    _sites: Mapping[str, Site]
    _inputs: Mapping[str, str]

    @staticmethod
    def of(model: ir.Model, names: Collection[str], read: ReadArray) -> Exposed:
        """names: of the sites."""
        exposed = model.clone()
        sites = {s.name: s for s in find_sites(exposed).sites if s.name in names}
        values = {name: evaluate(site.weight, read) for name, site in sites.items()}
        inputs = {name: _promote(exposed.graph, site) for name, site in sites.items()}
        originals = {inputs[name]: value for name, value in values.items()}
        return Exposed(exposed, originals, sites, inputs)

    def changed(self, name: str, matrix: NDArray[np.float32]) -> tuple[str, Array]:
        """The input of a site, and a weight [N, K] as that takes it."""
        place = self._inputs[name]
        return place, _operand(self._sites[name], matrix, self.originals[place])


def _relative_error(
    references: Sequence[Mapping[str, Array]],
    runs: Iterable[Mapping[str, Array]],
    weights: Mapping[str, float],
) -> float:
    """Error by channel over all batches; the worst floating-point output."""
    meters: dict[str, ChannelMeter] = {}
    for reference, found in zip(references, runs, strict=True):
        for name, value in reference.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                meters.setdefault(name, ChannelMeter()).add(value, found[name])
    errors = (weighted(m.result().relative, name, weights) for name, m in meters.items())
    return max(errors, default=0.0)


def _promote(graph: ir.Graph, site: Site) -> str:
    """Make the operand of the site's uses a graph input; returns its name."""
    operand = site.uses[0].node.inputs[site.uses[0].index]
    name = f"{site.name}/trial"
    value = ir.Value(
        name=name,
        shape=ir.Shape(site.shape),
        type=ir.TensorType((operand.dtype if operand is not None else None) or ir.DataType.FLOAT),
    )
    graph.inputs.append(value)
    for use in site.uses:
        seen = value
        if use.transposed != site.uses[0].transposed:
            node = ir.node("Transpose", [value], name=f"{name}/transpose")
            node.outputs[0].name = f"{name}/transposed"
            graph.insert_before(graph[0], node)
            seen = node.outputs[0]
        use.node.replace_input_with(use.index, seen)
    return name


def _operand(site: Site, matrix: NDArray[np.float32], like: Array) -> Array:
    """The weight [N, K] as the first use sees it."""
    if matrix.size == like.size and len(site.shape) == 2 and site.uses[0].transposed:
        matrix = matrix.T
    return np.ascontiguousarray(matrix.reshape(like.shape).astype(like.dtype))
