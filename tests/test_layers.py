"""Imports point downward only: see the layer list in docs/index.md."""

import ast
from pathlib import Path

import pytest

import lwqc

ROOT = Path(lwqc.__file__).parent
# From the top down; modules on one line may import each other.
LAYERS = [
    {"__init__", "cli", "demo"},
    {"api", "report.blame", "report.inspection", "report.terminal"}
    | {"report.plan_text", "report.plan_diff", "schemas"},
    {"compress", "inspection", "lower"},
    {"strategy"},
    {"structural", "joint", "whole_search"},
    {"search_overhead", "search_times", "search_memory", "search_scores"},
    {"execute", "decided"},
    {"compressed"},
    {"branch_reports", "allocate", "branch_diagnostics"},
    {"fastest"},
    {"safest"},
    {"importance", "mixed", "planning", "report.result"}
    | {
        "blame",
        "float_plan",
        "idle_branches",
        "sparse_plan",
        "device_bench",
        "profiles",
        "restored",
        "drop_layers",
        "gated_model",
        "parallel_layers",
        "reconstruct",
        "sequential",
        "slice_streams",
        "transforms",
        "batch_norm",
        "channels",
        "channel_ranking",
        "prunable",
        "pruned_model",
        "removed_branches",
        "joint_plan",
        "search_items",
        "trial_spec",
    },
    {"timing"},
    {"search_start", "search_workers", "search_control"},
    {"search_space"},
    {"trial_model", "search_log", "search_pace"},
    {"saved_check"},
    {"cleaned", "workspace", "site_grams", "data_free", "recipe", "goals", "cleanup"},
    {"served", "timing_cache", "legal_sizes", "locks"},
    {"measure"},
    {"backends"},
    {"passes", "search"},
    {"scores"},
    {"stats"},
    {"plan", "data", "random_inputs", "frontends", "interop"},
    {"unused", "io", "saving", "model_stream", "tensor_bytes", "untrusted", "paths"}
    | {"kept_parts", "normal_form"},
    {"quant", "graph"},
    {"user_code"},
    {"errors", "recipes", "version"},
]


def layer(module: str) -> int:
    name = module.removeprefix("lwqc").removeprefix(".") or "__init__"
    for i, members in enumerate(LAYERS):
        if name in members or name.split(".")[0] in members:
            return i
    raise AssertionError(f"{module} is in no layer: add it to the list")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downward(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    own = ".".join(p for p in parts if p != "__init__" or len(parts) == 1)
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lwqc"):
            names = (
                [node.module] if node.module != "lwqc" else [f"lwqc.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("lwqc")]
        for name in names:
            assert layer(name) >= layer(f"lwqc.{own}"), f"{own} imports {name}, which is above it"


def test_only_one_module_imports_onnxruntime():
    users = [f.name for f in FILES if "import onnxruntime" in f.read_text()]
    assert users == ["isolated_child.py", "session.py"]


def test_passes_know_no_search_scores_or_backends():
    for file in (ROOT / "passes").glob("*.py"):
        text = file.read_text()
        for above in ("lwqc.search", "lwqc.scores", "lwqc.backends"):
            assert above not in text
