"""Which convolutions are worth 8 bits together: a cut between what is 8-bit and what is float.

Where an 8-bit tensor meets a float operator, or a float tensor an 8-bit one, a conversion stands,
and takes time. The set of convolutions of least time, conversions included, is a minimum cut of the
graph whose sides are 8 bits and float (as in Boykov, Veksler and Zabih 2001, with two labels).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import count

import onnx_ir as ir

from lwqc.compile.timing import conversion_seconds, shapes_at, site_times
from lwqc.compile.version import Version
from lwqc.graph.integer_flow import ABSORBED, COMPUTE, moves_codes
from lwqc.graph.sites import Site
from lwqc.model.weights import trace_weight
from lwqc.plans.plan import Plan

_EIGHT, _FLOAT = "8 bits", "float"
_FREE = COMPUTE | ABSORBED
# What a conversion takes, in times of an element that is rounded and moved: float kernels bring
# channels in an order of their own, too. Which is right is timed on the whole.
_PRICES = (1.5, 3.0, 6.0)


def islands(work: Version, plan: Plan) -> list[set[str]]:
    """Sets of the plan's static convolutions that had better be float, none of them empty.

    By what conversions may cost: the dearer they are, the larger what stays together has to be.
    """
    entries, graph = plan.quantize, work.model.graph
    convs = [s for s in work.analysis.sites if s.op == "Conv" and s.name in entries]
    sites = [s for s in convs if entries[s.name].activation == "static" and not s.in_body]
    if len(sites) < 2:
        return []
    nodes = {use.node for site in sites for use in site.uses} | set(filter(_is_free, graph))
    around = {v for n in nodes for v in (*n.inputs, *n.outputs) if v is not None and v.name}
    named = sorted(v.name or "" for v in around if v.dtype == ir.DataType.FLOAT)
    named = [name for name in named if name not in graph.initializers]
    sizes = dict.fromkeys(named, 0)
    for one in work.job.data.serve:
        shapes = shapes_at(work, one, named)
        sizes = {name: size + math.prod(shapes[name]) for name, size in sizes.items()}
    unit = conversion_seconds(work)
    times, gains = site_times(work, plan), {}
    for site in sites:
        gains[site.name] = sum(before - after for before, after in times.get(site.name, ()))
    found = {}
    for price in _PRICES:
        worth = worth_it(graph, sites, gains, sizes, price * unit)
        left = {site.name for site in sites} - worth
        if left:
            found[frozenset(left)] = left
    return list(found.values())


def worth_it(
    graph: ir.Graph,
    sites: Collection[Site],
    gains: Mapping[str, float],
    sizes: Mapping[str, int],
    rate: float,
) -> set[str]:
    """Names of the convolutions that take the least time in 8 bits, of those that may.

    sites: convolutions that may have static 8-bit activations. gains: seconds that each saves
    between 8-bit tensors, negative where it loses. sizes: elements by tensor; a tensor that is not
    in it costs nothing to convert. rate: seconds of converting one element. Operators that have an
    integer form go with what is around them at equal time; all others are float.
    """
    import networkx as nx

    cut: nx.DiGraph[object] = nx.DiGraph()
    cut.add_nodes_from([_EIGHT, _FLOAT])
    owner = {use.node: site for site in sites for use in site.uses}
    for site in sites:
        gain = gains.get(site.name, 0.0)
        ends = (_EIGHT, site) if gain > 0 else (site, _FLOAT)
        cut.add_edge(*ends, capacity=abs(gain))

    def place(node: ir.Node | None) -> Site | ir.Node | str:
        """Where the operator is in the cut."""
        if node is not None and node in owner:
            return owner[node]
        return node if node is not None and _is_free(node) else _FLOAT

    number = count()
    for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
        cost = rate * sizes.get(value.name or "", 0)
        readers = {place(use.node) for use in value.uses()}
        if value.is_graph_output():
            readers.add(_FLOAT)
        source = place(value.producer())
        if cost <= 0 or trace_weight(value) is not None or readers <= {source}:
            continue
        down, up = next(number), next(number)  # one conversion serves all readers, either way
        cut.add_edge(source, down, capacity=cost)
        cut.add_edge(up, source, capacity=cost)
        for reader in readers:
            cut.add_edge(down, reader, capacity=math.inf)
            cut.add_edge(reader, up, capacity=math.inf)
    _, (eight, _) = nx.minimum_cut(cut, _EIGHT, _FLOAT)
    return {site.name for site in sites if site in eight}


def _is_free(node: ir.Node) -> bool:
    """Whether an operator runs on codes or on floats, as what is around it does."""
    return moves_codes(node) or (node.domain == "" and node.op_type in _FREE)
