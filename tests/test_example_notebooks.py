"""Every cell of the notebooks runs, in a folder of its own; their asserts say what must hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run_in_order(path, tmp_path, monkeypatch, capsys):
    if path.stem == "training":
        pytest.importorskip("torch", reason="trains with torch")
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": path.stem}
    for number, text in enumerate(code):
        exec(compile(text, f"{path.name}[{number}]", "exec"), names)
    assert any("assert" in text for text in code)
    assert capsys.readouterr().out


def test_notebooks_are_stored_without_outputs():
    """Numbers in them would be those of another machine."""
    assert len(NOTEBOOKS) >= 3
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs")
