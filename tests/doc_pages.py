"""Examples and commands of documentation pages, as a reader would take them."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
BLOCK = re.compile(r"```([\w-]*)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(lwqc\s[^`]+)`(?!`)")


def commands(page: Path) -> list[list[str]]:
    """Commands of lwqc in blocks without a language, without what a shell makes of them."""
    text = "\n".join(body for language, body in BLOCK.findall(page.read_text()) if not language)
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := _words(line))]


def mentioned(page: Path) -> list[list[str]]:
    """Commands of lwqc in running text, or parts of some; names of rows in tables are none."""
    text = BLOCK.sub("", page.read_text())
    found = [" ".join(one.split()) for one in _INLINE.findall(text)]
    return [[w for w in _words(one) if w != "..."] for one in found if f"| {one} |" not in text]


def _words(line: str) -> list[str]:
    """`lwqc` and its arguments; nothing for another program."""
    line = line.rpartition("&& ")[2]
    words = shlex.split(line, comments=True) if line.startswith("lwqc ") else []
    return words[: words.index(">")] if ">" in words else words


@dataclass(frozen=True)
class Example:
    """The last section of a page. files: by the name in their first line. use: what has no name."""

    files: dict[str, str]
    use: str

    @property
    def lines(self) -> int:
        """Lines of all of it."""
        return sum(len(text.splitlines()) for text in (*self.files.values(), self.use))

    def install(self, folder: Path) -> None:
        """Write the files, and what pip would make of pyproject.toml, to a folder of modules."""
        for name, text in self.files.items():
            (folder / name).write_text(text)
        if "pyproject.toml" not in self.files:
            return
        project = tomllib.loads(self.files["pyproject.toml"])["project"]
        name = project["name"].replace("-", "_")
        info = folder / f"{name}-{project['version']}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(head)
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def example(page: str) -> Example:
    """The example that a page ends in."""
    section = (DOCS / page).read_text().rpartition("\n## Example\n")[2]
    files, use = {}, ""
    for language, text in BLOCK.findall(section):
        first = text.partition("\n")[0]
        if first.startswith("# ") and "." in first:
            files[first.removeprefix("# ")] = text
        else:
            assert language == "python"
            use += text
    return Example(files, use)
