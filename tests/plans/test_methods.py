"""Every recipe says what its method claims, what is done here, and what was measured."""

import re

from lwqc.plans.recipe import named
from tests.doc_pages import DOCS

PAGE = (DOCS / "methods.md").read_text()


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_recipe_has_one_row_and_every_row_its_recipe():
    found = [name for row in rows() for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(found) == sorted(named())


def test_no_row_is_a_name_alone():
    """Claim, what is done, what differs, and the check or why there is none."""
    for row in rows():
        assert len(row) == 5, row[0]
        assert all(len(cell) > 3 for cell in row), row[0]


def test_every_row_has_a_number_or_says_that_it_is_not_measured():
    for row in rows():
        assert re.search(r"\d|not measured", row[4]), row[0]


def test_what_a_recipe_cites_is_cited():
    for name, recipe in named().items():
        (row,) = [r for r in rows() if f"`{name}`" in r[0]]
        for paper in re.findall(r"\d{4}\.\d{5}", recipe.source):
            assert paper in row[1], name
