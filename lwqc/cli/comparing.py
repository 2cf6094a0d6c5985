"""The command that compares files of any tool."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Unpack

import typer

from lwqc.cli.hosting import answer, command_line
from lwqc.cli.options import Comparing, Opened, as_real
from lwqc.cli.running import Files, opened
from lwqc.cli.sections import command
from lwqc.errors import InputError
from lwqc.plans.spelled_out import part


@command(Comparing)
def compare(
    models: Annotated[list[Path], typer.Argument(help="files, compared with the first of them")],
    seconds: Annotated[float, typer.Option(parser=as_real, help="time per model")] = 2.0,
    **options: Unpack[Comparing],
) -> None:
    """Show files of any tool side by side: sizes, operators, weights, outputs and times."""
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.side_by_side import print_side_by_side
    from lwqc.compile.result import finite
    from lwqc.decide.explain.side_by_side import side_by_side
    from lwqc.model import io
    from lwqc.model.data_files import model_files
    from lwqc.model.saving import write_text

    if not (seconds > 0 and math.isfinite(seconds)):
        raise InputError(f"--seconds {seconds}: expected a time above 0")
    if len(models) < 2:
        raise InputError("compare needs at least two files; `lwqc inspect` looks at one")
    page = options.get("report")
    others = [file for path in models[1:] for file in model_files(io.load(path))]
    files = Files([], [page], read=others)
    with opened(models[0], files, part(Opened, options)) as work:
        found = side_by_side(work, models, seconds)
    document = finite(found.to_dict())
    answer(document)
    if page is not None:
        from lwqc.cli.report.html.of_files import files_page
        from lwqc.cli.report.html.render import render

        write_text(page, render(files_page(found, command_line())))
    if options["as_json"]:
        print(json.dumps(document, indent=1))
    else:
        print_side_by_side(found, Console())
