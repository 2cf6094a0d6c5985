"""Pages of the site are in its contents, and what they link to is there."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.doc_pages import BLOCK, DOCS, ROOT, TEXTS

_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$", re.MULTILINE)


def anchors(page) -> set[str]:
    """Of headings, as mkdocs and GitHub write them where both write the same."""
    headings = _HEADING.findall(BLOCK.sub("", page.read_text()))
    kept = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in kept}


def pages_of(contents) -> list[str]:
    """Pages that a part of the contents names."""
    if isinstance(contents, str):
        return [contents]
    parts = contents.values() if isinstance(contents, dict) else contents
    return [page for part in parts for page in pages_of(part)]


def test_every_page_is_in_the_contents_once():
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(named) == there


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    broken = []
    for path, anchor in _LINK.findall(BLOCK.sub("", page.read_text())):
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        inside = DOCS not in page.parents or target.is_relative_to(DOCS)  # else the site lacks it
        found = target.exists() and inside
        if anchor and found:
            found = target.suffix == ".md" and anchor in anchors(target)
        if not found:
            broken.append(f"{path}#{anchor}" if anchor else path)
    assert broken == []
