"""Every command of the guides is run, in their order, with small files under their names."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from lwqc.model import io
from tests import guide_files
from tests.doc_pages import BLOCK, DOCS, commands
from tests.short import short

pytest.importorskip("PIL", reason="images need pillow, of the extra lwqc[data]")
GUIDES = sorted((DOCS / "guides").glob("*.md"))
_KERAS = importlib.util.find_spec("tf2onnx") is not None


def written(page: Path, folder: Path) -> None:
    """Files whose names stand in the first line of a block."""
    for language, body in BLOCK.findall(page.read_text()):
        first = body.partition("\n")[0]
        if language and re.fullmatch(r"# [\w-]+\.\w+", first):
            (folder / first.removeprefix("# ")).write_text(body)


def test_there_is_a_guide_for_each_kind_of_model():
    assert [page.stem for page in GUIDES] == [
        "decoder", "detector", "encoder", "ocr", "speech", "tensorrt",
    ]  # fmt: skip
    contents = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f"guides/{page.name}" in contents for page in GUIDES)
    assert all(f"guides/{page.name}" in (DOCS / "index.md").read_text() for page in GUIDES)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_commands_of_a_guide(page, run, tmp_path, monkeypatch):
    if page.stem == "encoder":
        pytest.importorskip("tokenizers", reason="texts need tokenizers, of the extra lwqc[data]")
    short(monkeypatch)
    monkeypatch.chdir(tmp_path)
    written(page, tmp_path)
    getattr(guide_files, page.stem)(tmp_path)
    told = commands(page)
    assert len(told) >= 3
    for line in told:
        if line[1] == "convert" and not _KERAS:
            continue
        code, text, err = run(*[_own(word, tmp_path) for word in line[1:]])
        assert code in (0, 3), f"{shlex.join(line)}: {err}"  # 3: what was made misses a bound
        assert text or err


def _own(word: str, folder: Path) -> str:
    """tf2onnx numbers the sizes that it names."""
    if "unk__0" not in word:
        return word
    (size,) = {str(v.shape[0]) for v in io.load(folder / "model.onnx").graph.inputs}
    return word.replace("unk__0", size)
