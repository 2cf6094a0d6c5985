"""The page of targets: a row for each, evidence and a source in every cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lwqc.model.extensions import TARGETS

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()
EVIDENCE = re.compile(r"\((run|built|rule)(?: (\d+))?\)$")
SOURCES = {int(n) for n in re.findall(r"^(\d+)\. \S", PAGE, re.M)}


def table(first: str) -> dict[str, list[str]]:
    """Cells of the table whose head begins so, by what is left of them."""
    lines = PAGE.partition(f"| {first} |")[2].splitlines()[2:]
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        skipped = 1 if first == "target" else 2
        found[", ".join(cells[:skipped])] = cells[skipped:]
    return found


def test_every_target_has_its_row():
    assert list(table("target")) == list(TARGETS.built_in)


@pytest.mark.parametrize("name", TARGETS.built_in)
def test_every_cell_of_a_target_has_evidence_and_a_source(name):
    cells = table("target")[name]
    assert len(cells) == 6
    for cell in cells:
        found = EVIDENCE.search(cell)
        assert found, cell
        assert int(found[2]) in SOURCES, cell


def test_every_cell_of_an_operator_has_evidence():
    rows = table("operator")
    assert len(rows) > 10
    for cells in rows.values():
        assert [EVIDENCE.search(cell)[1] for cell in cells] == ["run", "built", "rule"], cells


def test_every_source_is_used():
    used = {int(EVIDENCE.search(c)[2]) for cells in table("target").values() for c in cells}
    assert used == SOURCES
