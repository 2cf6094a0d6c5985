"""What exporters write into a model for themselves: stack traces, source paths, rules."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import onnx_ir as ir

# Keys of exporters and rewriters: torch writes `namespace`, and `pkg.torch...` as onnxscript does
# `pkg.onnxscript...`. Others may tell a runtime something, as `layer_ann` does onnxruntime.
_KEYS = ("namespace",)
_PREFIX = "pkg."


def bare(model: ir.Model) -> ir.Model:
    """The model without what its exporter wrote for itself, and with a note of that."""
    bare, taken = without_metadata(model)
    if taken:
        note = (
            f"{taken} bytes that the exporter wrote for itself are left out, such as stack traces "
            "and source paths: --keep-metadata keeps them"
        )
        bare.meta["lwqc_notes"] = (*model.meta.get("lwqc_notes", ()), note)
    return bare


def without_metadata(model: ir.Model) -> tuple[ir.Model, int]:
    """The model without it, and how many bytes of text that is; the same model where it has none.

    Nodes and functions lose their doc strings too, where exporters write stack traces. What a model
    says of itself, its inputs and its outputs stays.
    """
    taken = _bytes(model)
    if not taken:
        return model, 0
    copy = model.clone()
    copy.meta.update(model.meta)
    for one in _described(copy):
        one.doc_string = None
    for entries in _entries(copy):
        for key in _exporters(entries):
            del entries[key]
    return copy, taken


def _bytes(model: ir.Model) -> int:
    texts = [one.doc_string or "" for one in _described(model)]
    texts += [f"{k}{entries[k]}" for entries in _entries(model) for k in _exporters(entries)]
    return sum(len(text.encode()) for text in texts)


def _exporters(entries: MutableMapping[str, str]) -> list[str]:
    return [key for key in entries if key in _KEYS or key.startswith(_PREFIX)]


def _described(model: ir.Model) -> Iterator[ir.Node | ir.Function]:
    yield from model.functions.values()
    for graph in _graphs(model):
        yield from graph


def _entries(model: ir.Model) -> Iterator[MutableMapping[str, str]]:
    yield from (function.metadata_props for function in model.functions.values())
    signature = {*model.graph.inputs, *model.graph.outputs}
    for graph in _graphs(model):
        yield graph.metadata_props
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value not in signature:
                yield value.metadata_props
        yield from (node.metadata_props for node in graph)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()
