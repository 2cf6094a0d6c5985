"""The pages of commands and of functions are made of the code."""

from pathlib import Path

import lwqc
from lwqc.cli.api_reference import api_reference
from lwqc.cli.reference import reference

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_those_of_the_code():
    pages = {"commands": reference(), "api": api_reference(lwqc)}
    for page, made in pages.items():
        module = "reference" if page == "commands" else "api_reference"
        run = f"run python -m lwqc.cli.{module} > docs/{page}.md"
        assert (DOCS / f"{page}.md").read_text() == made, run


def test_every_public_name_is_told_with_its_options():
    text = api_reference(lwqc)
    assert all(f"### lwqc.{name}\n" in text for name in lwqc.__all__)
    _, _, compress = text.partition("### lwqc.compress\n")
    assert "| `max_size` |" in compress.partition("### ")[0]
    assert " at 0x" not in text


def test_commands_and_defaults_are_told():
    text = reference()
    for line in (
        "## lwqc compress",
        "| `--max-size` |",
        "| `--verify`, `--no-verify` | measure the saved file | `--verify` |",
        "| `--output`, `-o` | where to write the result | required |",
    ):
        assert line in text
    assert "None" not in text
