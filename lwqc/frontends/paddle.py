"""PaddlePaddle's inference models to ONNX by paddle2onnx; extra `lwqc[paddle]`."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.frontends.converting import converting
from lwqc.model import io
from lwqc.model.needed import needed
from lwqc.model.scratch import temporary_folder

OPSET = 17
PROGRAMS = (".json", ".pdmodel")
_WEIGHTS = ".pdiparams"


def load(path: Path) -> ir.Model:
    """A program, `.json` or `.pdmodel`, or the folder of one, with its `.pdiparams` beside.

    Raises InputError.
    """
    program = program_of(path)
    if program is None:
        raise InputError(
            f"{path}: expected NAME.json or NAME.pdmodel, and NAME{_WEIGHTS} beside it"
        )
    converter = needed("paddle2onnx", "PaddlePaddle's models", "paddle")
    weights = program.with_suffix(_WEIGHTS)
    with temporary_folder() as folder:
        written = folder / "model.onnx"
        with converting(f"{path}: conversion"):
            converter.export(
                str(program),
                str(weights),
                str(written),
                opset_version=OPSET,
                enable_optimize=False,
            )
        if not written.exists():
            raise InputError(f"{path}: conversion failed: paddle2onnx wrote nothing")
        model = io.load(written)
        del model.meta["lwqc_path"]
        return io.detached(model)


def program_of(path: Path) -> Path | None:
    """The program in a folder, or the file itself; None for what is none with weights."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    fits = (f for f in files if f.suffix in PROGRAMS and f.with_suffix(_WEIGHTS).is_file())
    return next(fits, None)
