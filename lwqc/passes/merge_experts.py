"""Fewer experts of a mixture: several of a router's choices stand for one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lwqc.graph.mixtures import Mixture
from lwqc.model.edit import add_constant, replace_stored
from lwqc.model.names import unique_name


def merge_experts(
    graph: ir.Graph, mixture: Mixture, into: Sequence[int], rows: Sequence[Sequence[np.ndarray]]
) -> None:
    """Let tables hold one row for each group of experts, in place.

    The router stays: it chooses among all experts as before, and a table `into` of which group each
    is in stands between its choices and the rows. Of a token that has two experts of one group both
    shares count for the one that is left.

    into: group of each expert. rows: of each group, one array for each table.
    """
    for number, (table, before) in enumerate(zip(mixture.tables, mixture.tensors, strict=True)):
        array = np.stack([row[number] for row in rows]).astype(before.dtype.numpy())
        replace_stored(table, ir.tensor(array, dtype=before.dtype, name=table.name))
        table.shape = ir.Shape(array.shape)
    places = mixture.places
    name = f"{places.name}/experts"
    groups = add_constant(graph, f"{name}/groups", np.asarray(into, np.int64))
    gather = ir.node("Gather", [groups, places], name=f"{name}/Gather")
    found = gather.outputs[0]
    found.name = unique_name(graph, name)
    found.shape, found.type = places.shape, places.type
    graph.insert_after(mixture.router, gather)
    places.replace_all_uses_with(found)
    gather.replace_input_with(1, places)
