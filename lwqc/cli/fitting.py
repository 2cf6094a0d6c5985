"""Commands that change weights by gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from lwqc.cli.hosting import command_line, work_begins
from lwqc.cli.options import Model, Output, RecoveringCommand
from lwqc.cli.progress import at, progress_bars
from lwqc.cli.running import Files
from lwqc.cli.sections import command
from lwqc.cli.telling import tell_report
from lwqc.plans.options import Recovering
from lwqc.plans.spelled_out import part

if TYPE_CHECKING:
    from lwqc.compile.recovered import RecoverReport


@command(RecoveringCommand)
def recover(
    model: Model,
    output: Output,
    teacher: Annotated[
        Path, typer.Option("--teacher", help="the model that MODEL was made of", show_default=False)
    ],
    **options: Unpack[RecoveringCommand],
) -> None:
    """Fit a smaller model to the outputs of the one that it was made of, by gradients."""
    from lwqc.cli.report.html.of_recovery import recovery_page
    from lwqc.cli.report.html.render import render
    from lwqc.compile.recover import recover as fitted
    from lwqc.learn.needed import require_torch
    from lwqc.model import io
    from lwqc.model.data_files import model_files
    from lwqc.model.user_code import loaded_files
    from lwqc.runtime.data import data_sources

    require_torch()
    work_begins()
    at("opening")
    constant = options.get("constant_inputs", False)
    small, original = (io.load(path, constant_inputs=constant) for path in (model, teacher))
    page, state = options.get("report"), output.with_name(f"{output.name}.recover")
    files = Files([output], [page], logs=[state])
    read = [
        *model_files(small),
        *model_files(original),
        *data_sources(options.get("data"), options.get("preprocess")),
    ]
    files.check([*read, *loaded_files()])
    with progress_bars() as progress:
        names = (model.name, teacher.name)
        chosen: Recovering = {**part(Recovering, options), "checkpoint": state}
        done = fitted(small, original, chosen, names=names, progress=progress)
        files.check(loaded_files())
        external, verify = options.get("external"), options["verify"]
        with done.drafted(output, external_data=external, verify=verify) as (draft, report):
            if page is not None:
                draft.add_text(page, render(recovery_page(small, done, report, command_line())))
            draft.publish()
        state.unlink(missing_ok=True)
    tell_report(report.to_dict(), lines(report), as_json=options["as_json"])


def lines(report: RecoverReport) -> list[str]:
    """The report for readers."""
    parts = f"{report.parts} parts, then " if report.parts else ""
    inputs = f"{report.fitted} sets of inputs, {report.held_back} held back"
    made = f"{parts}{report.steps} steps on {inputs}"
    told = [
        f"{report.output}: {report.output_bytes} bytes; {made}; {report.trained} numbers trained; "
        f"{report.seconds:.0f} s",
        f"held-back loss {report.loss_before:.4g} -> {report.loss_after:.4g}; drop from "
        f"{report.teacher} {report.drop_before:.4g} -> {report.drop_after:.4g}",
    ]
    if report.unchanged:
        told.append(f"the model is unchanged: {report.unchanged}")
    return [*told, *report.notes]
