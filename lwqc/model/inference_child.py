"""What the process behind `lwqc.model.inference` does: ONNX's own shape inference, on request.

Imports nothing of lwqc, which would take longer than the work. Requests come as pickled tuples on
standard input, answers go to standard output: (True, result) or (False, reason).
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx.numpy_helper
import onnx.shape_inference


def model(proto: bytes, strict: bool, data: bool) -> bytes:
    """A model with inferred types. data: look at the values that shapes are computed from."""
    parsed = onnx.ModelProto.FromString(proto)
    inferred = onnx.shape_inference.infer_shapes(parsed, strict_mode=strict, data_prop=data)
    return bytes(inferred.SerializeToString())


def node(
    proto: bytes, domain: str, version: int, types: Mapping[str, bytes], data: Mapping[str, Any]
) -> dict[str, bytes]:
    """Types of the outputs of one node. types: of its inputs. data: values of some of them."""
    parsed = onnx.NodeProto.FromString(proto)
    schema = onnx.defs.get_schema(parsed.op_type, version, domain)
    found = onnx.shape_inference.infer_node_outputs(
        schema,
        parsed,
        {name: onnx.TypeProto.FromString(kind) for name, kind in types.items()},
        {name: onnx.numpy_helper.from_array(array) for name, array in data.items()},
    )
    return {name: kind.SerializeToString() for name, kind in found.items()}


_ANSWERS: dict[str, Callable[..., Any]] = {"model": model, "node": node}


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    while True:
        try:
            name, most_bytes, *arguments = pickle.load(requests)
        except EOFError:
            return
        _bound_memory(most_bytes)
        try:
            answer = (True, _ANSWERS[name](*arguments))
        except Exception as error:  # the library's own, of any kind
            answer = (False, " ".join(str(error).split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _bound_memory(most_bytes: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > most_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


if __name__ == "__main__":
    main()
