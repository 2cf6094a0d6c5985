"""The page of commands is made of the code."""

from pathlib import Path

from lwqc.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_is_that_of_the_code():
    assert PAGE.read_text() == reference(), "run python -m lwqc.cli.reference > docs/commands.md"


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
