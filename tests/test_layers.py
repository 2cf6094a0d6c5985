"""Imports point downward only, between packages and between the files of one; tests mirror them."""

import ast
import re
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import lwqc

ROOT = Path(lwqc.__file__).parent
TESTS = Path(__file__).parent
# Tests of what is no package: damaged input, the shipped models, exported architectures.
OF_ALL = {"fuzz", "models", "zoo"}
# From the top down; packages of one floor do not import each other.
FLOORS = [
    ["__main__"],
    ["lwqc", "cli", "testing"],
    ["api"],
    ["decide"],
    ["compile"],
    ["backends"],
    ["passes", "runtime", "learn"],
    ["graph", "plans", "frontends"],
    ["quant", "model"],
    ["errors"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = {
    ".".join(p for p in ("lwqc", *f.relative_to(ROOT).with_suffix("").parts) if p != "__init__"): f
    for f in sorted(ROOT.rglob("*.py"))
}


def package(module: str) -> str:
    return (*module.split("."), "lwqc")[1] if module != "lwqc" else "lwqc"


@cache
def imported(file: Path) -> set[str]:
    """The modules of lwqc that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lwqc":
            names = [f"{node.module}.{a.name}" for a in node.names]
            found |= {name if name in FILES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "lwqc"}
    return found


def imports(module: str) -> set[str]:
    return imported(FILES[module])


def test_everything_directly_in_the_package_has_a_floor():
    entries = {p.stem if p.suffix == ".py" else p.name for p in ROOT.iterdir()}
    entries -= {"__init__", "__main__", "__pycache__", "py.typed"}
    assert entries <= FLOOR.keys()
    assert len(entries) + 2 <= 17  # with __init__ and py.typed


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downward(module):
    own = package(module)
    for name in imports(module):
        assert name in FILES, f"{module} imports {name}, which is not there"
        other = package(name)
        assert other == own or FLOOR[other] > FLOOR[own], f"{module} imports {name}, not below it"


def test_no_files_import_each_other_in_a_circle():
    graph = nx.DiGraph((module, name) for module in FILES for name in imports(module))
    assert [c for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


def test_only_the_runtime_imports_onnxruntime():
    users = [module for module, file in FILES.items() if "import onnxruntime" in file.read_text()]
    assert users == ["lwqc.runtime.isolated_child", "lwqc.runtime.session"]


def test_folders_of_tests_are_those_of_the_packages():
    folders = {p.parent.relative_to(TESTS) for p in TESTS.rglob("test_*.py")}
    assert [f for f in folders if not (ROOT / f).is_dir() and str(f) not in OF_ALL] == []


@pytest.mark.parametrize("file", sorted(TESTS.glob("test_*.py")), ids=lambda f: f.name)
def test_a_test_of_one_package_is_in_its_folder(file):
    """Beside the folders are tests of the command, of the whole API, and of several packages."""
    of_all = re.compile(r"^import lwqc$|^def test_.*\brun\b|[ =]run\(|\bsubprocess\b", re.M)
    packages = {package(m) for m in imported(file)} - {"errors"}
    assert len(packages) != 1 or of_all.search(file.read_text())
