#!/usr/bin/env bash
# `del graph.outputs[i]` of onnx_ir takes the value out of the list and leaves it marked as an output.
#
# Versions: onnx-ir==1.1.0
# One would guess: graph.outputs behaves as a list that keeps track of its values, so that del, pop and remove end
#   alike: the value is no output any more.
# What happens: pop and remove tell the value; del does not. value.is_graph_output() stays True, value.graph stays the
#   graph, replacing its uses is refused as for an output, and it cannot become the output of another graph. Nothing
#   is raised where the mistake is made.
# Why it matters: a rewrite that drops an output and then moves or replaces the value fails later, elsewhere, with a
#   message about an output that no list shows.
#
# Output seen:
#   pop: listed False, is_graph_output False, uses replaced
#   remove: listed False, is_graph_output False, uses replaced
#   del: listed False, is_graph_output True, ValueError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx-ir==1.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import onnx_ir as ir


def outcome(drop):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    first = ir.node("Abs", [x])
    second = ir.node("Neg", [first.outputs[0]])
    kept, dropped = second.outputs[0], first.outputs[0]
    graph = ir.Graph([x], [kept, dropped], nodes=[first, second], opset_imports={"": 20}, name="g")
    drop(graph)
    listed = any(value is dropped for value in graph.outputs)
    marked = dropped.is_graph_output()
    try:
        dropped.replace_all_uses_with(x)
        after = "uses replaced"
    except ValueError as error:
        after = type(error).__name__
    return f"listed {listed}, is_graph_output {marked}, {after}"


def by_del(graph):
    del graph.outputs[1]


right = "listed False, is_graph_output False, uses replaced"
ways = {"pop": lambda g: g.outputs.pop(1), "remove": lambda g: g.outputs.remove(g.outputs[1]), "del": by_del}
seen = {name: outcome(way) for name, way in ways.items()}
for name, words in seen.items():
    print(f"{name}: {words}")
assert seen["pop"] == seen["remove"] == right
assert seen["del"] == "listed False, is_graph_output True, ValueError", "this has changed"
EOF
