"""The command that takes token ids out of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from lwqc.cli.hosting import work_begins
from lwqc.cli.options import Model, Output, Vocabulary, as_whole
from lwqc.cli.progress import at
from lwqc.cli.sections import command
from lwqc.cli.telling import tell_report
from lwqc.errors import InputError
from lwqc.model.outputs import check_outputs
from lwqc.plans.option_texts import parse_ids

if TYPE_CHECKING:
    from lwqc.compile.vocabulary import VocabularyReport


@command(Vocabulary)
def vocabulary(
    model: Model,
    output: Output,
    keep: Annotated[
        str, typer.Option(help="ids that stay beside those of the data: 0-103,2000, or a file")
    ] = "",
    unknown: Annotated[
        int | None,
        typer.Option(
            parser=as_whole, help="id that those become that go (default: they are refused)"
        ),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="input that holds them (default: of the largest table)")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="output over the same ids, where it shares no table with them"),
    ] = None,
    ids_out: Annotated[
        Path | None,
        typer.Option("--map", help="where new ids are written (default: OUTPUT.ids.npz)"),
    ] = None,
    **options: Unpack[Vocabulary],
) -> None:
    """Take out the token ids that texts never have: inputs change their meaning by a map."""
    from lwqc.compile.vocabulary import map_of, smaller_vocabulary
    from lwqc.model import io
    from lwqc.model.data_files import model_files
    from lwqc.runtime.data import data_sources, open_data

    if "data" not in options and not keep:
        raise InputError("which ids stay is told by --data, --keep or both")
    work_begins()
    at("opening")
    loaded = io.load(model, constant_inputs=options["constant_inputs"])
    spec, preprocess = options.get("data"), options.get("preprocess")
    data = None if spec is None else open_data(spec, loaded, preprocess=preprocess)
    if data is not None and data.kind == "random":
        raise InputError(f"--data {spec}: random ids tell nothing of texts")
    read = [*model_files(loaded), *data_sources(spec, preprocess)]
    check_outputs([output, map_of(output, ids_out)], [model, *read])
    kept = parse_ids(keep) if keep else ()
    at("comparing outputs")
    made = smaller_vocabulary(
        loaded, data=data, keep=kept, unknown=unknown, ids=ids, heads=head or (), label=model.name
    )
    report = made.save(
        output, ids=ids_out, external_data=options.get("external"), verify=options["verify"]
    )
    tell_report(report.to_dict(), lines(report), as_json=options["as_json"])


def lines(report: VocabularyReport) -> list[str]:
    """The report for readers."""
    share = report.output_bytes / max(report.source_bytes, 1)
    told = [
        f"{report.output}: {report.after} of {report.before} ids of {report.ids}, "
        f"{report.output_bytes} bytes, {share:.2f} of the original's",
        f"its ids are others: take `map[ids]` of {report.map}",
    ]
    if report.heads:
        told.append(f"of {', '.join(report.heads)} only the kept ids are left, `kept` there")
    told += [f"{n} is over all {report.before} ids still: {why}" for n, why in report.whole.items()]
    if report.unknown is None:
        told.append("ids that are gone are refused when it runs; --unknown gives them a token")
    if report.compared:
        same = "equal, bit by bit" if report.exact else f"equal but for {report.difference:.2g}"
        told.append(f"outputs on {report.compared} feeds of the data are {same}")
    return told
