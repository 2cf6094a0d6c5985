"""What docstrings refer to is there for a reader of this repository."""

import re
from pathlib import Path

import pytest

import lwqc

ROOT = Path(lwqc.__file__).parent
REPOSITORY = ROOT.parent
# A file with a folder or an extension of ours, or a numbered card of a collection of notes.
DOCUMENT = re.compile(r"\b[\w./-]+\.md\b|\bcards? \d+")


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_documents_that_are_named_exist(file):
    for name in DOCUMENT.findall(file.read_text()):
        assert (REPOSITORY / name).is_file(), f"{name} is not in the repository"
