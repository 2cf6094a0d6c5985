"""Builds CUDA sessions under stub libraries, tells where nodes went; a process of its own.

Reads a JSON list of model paths from stdin and writes one JSON object per line: the path, nodes by
provider as (operator, name), operators of the graph after all fusions, and copies inserted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort


def placement(path: str, folder: str) -> dict[str, object]:
    """Where the runtime puts the nodes of one model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "weights.bin"
    )
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session = ort.InferenceSession(path, options, providers=providers)
    if session.get_providers() != providers:
        raise RuntimeError(f"{path}: the CUDA provider did not load")
    nodes: dict[str, list[tuple[str, str]]] = {}
    for group in session.get_provider_graph_assignment_info():
        nodes.setdefault(group.ep_name, []).extend((n.op_type, n.name) for n in group.get_nodes())
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    copies = [n.name for n in graph.node if n.op_type.startswith("Memcpy")]
    return {"path": path, "nodes": nodes, "operators": operators, "copies": copies}


def main() -> None:
    """Answer for every model asked for."""
    ort.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory() as folder:
        for path in json.load(sys.stdin):
            try:
                found = placement(path, folder)
            except Exception as error:
                found = {"path": path, "error": " ".join(str(error).split())[:400]}
            print(json.dumps(found), flush=True)
    os._exit(0)  # the stubs would not survive the provider's own clean-up


if __name__ == "__main__":
    main()
