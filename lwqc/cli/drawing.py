"""Drawings of a model's structure, as text for Graphviz or through it as a picture."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lwqc.errors import InputError
from lwqc.model.saving import check_output, write_text


def draw(text: str, dot: Path | None, svg: Path | None, inputs: Sequence[Path]) -> None:
    """Write the drawing where asked. inputs: files that must stay. Raises InputError."""
    for path in (dot, svg):
        if path is not None:
            check_output(path, inputs)
    picture = _picture(text) if svg is not None else ""
    if dot is not None:
        write_text(dot, text)
    if svg is not None:
        write_text(svg, picture)


def _picture(text: str) -> str:
    program = shutil.which("dot")
    if program is None:
        raise InputError("--svg: Graphviz's command `dot` is not installed; --dot needs nothing")
    done = subprocess.run(
        [program, "-Tsvg"],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--svg: Graphviz ended with {done.returncode}: {said}")
    return done.stdout
