"""The one place where a model from a stranger is checked, before anything looks at its graph.

The parts: `model_scopes` names, `function_calls` functions, `node_schemas` attributes and counts,
`declared_shapes` types and ranks. Bytes and files are checked before, by `untrusted`; nodes are
sorted before, by `normal_form`.
"""

from __future__ import annotations

import onnx

from lwqc.model.declared_shapes import Declared, check_declared
from lwqc.model.function_calls import check_functions
from lwqc.model.model_scopes import check_scopes
from lwqc.model.node_schemas import check_nodes


def check_model(proto: onnx.ModelProto) -> Declared:
    """Refuse a model that contradicts itself. Raises InputError, in one line without the file.

    Ranks that a runtime corrects are corrected in place, see `check_declared`.
    """
    check_scopes(proto)
    check_functions(proto)
    check_nodes(proto)
    return check_declared(proto)
