"""What docstrings refer to is there for a reader of this repository."""

import importlib.util
import re
from pathlib import Path

import lwqc

ROOT = Path(lwqc.__file__).parent
FILES = {str(f.relative_to(ROOT)): f.read_text() for f in sorted(ROOT.rglob("*.py"))}
# A text, or a numbered card of a collection of notes.
DOCUMENT = re.compile(r"\b[\w./-]+\.md\b|\bcards? \d+")
NAME = re.compile(r"`(lwqc(?:\.\w+)+)`")


def is_module(name: str) -> bool:
    """Whether a dotted name can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of what it would be in
        return False


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    module, _, last = name.rpartition(".")
    known = is_module(module) and hasattr(importlib.import_module(module), last)
    return known or is_module(name)


def test_names_that_are_referred_to_exist():
    missing = [(f, n) for f, text in FILES.items() for n in NAME.findall(text) if not is_there(n)]
    assert missing == []


def test_documents_that_are_named_exist():
    named = [(f, name) for f, text in FILES.items() for name in DOCUMENT.findall(text)]
    assert [(f, name) for f, name in named if not (ROOT.parent / name).is_file()] == []


PATH = re.compile(r"\blwqc/[\w/]+(?:\.\w+)?")
PAGES = [ROOT.parent / "README.md", *sorted((ROOT.parent / "docs").rglob("*.md"))]


def test_files_that_pages_name_exist():
    named = {(page.name, path) for page in PAGES for path in PATH.findall(page.read_text())}
    places = {(page, path): ROOT.parent / path for page, path in named if "NAME" not in path}
    missing = [
        key for key, at in places.items() if not (at.exists() or at.with_suffix(".py").exists())
    ]
    assert missing == []
