"""The command that compares a model with another one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from lwqc.cli.hosting import answer
from lwqc.cli.options import Opened, Printing, Verifying, as_whole
from lwqc.cli.running import Files, check_dry_run, errors_console, opened, print_foretold
from lwqc.cli.sections import command
from lwqc.errors import InputError
from lwqc.plans.options import Loss
from lwqc.plans.spelled_out import part

if TYPE_CHECKING:
    import onnx_ir as ir

    from lwqc.cli.report.blame import Blamed
    from lwqc.compile.version import Version
    from lwqc.plans.goals import Goals, Outcome
    from lwqc.runtime.flips import Flips
    from lwqc.runtime.session import Session
    from lwqc.runtime.stats.divergence import Divergence


@command(Verifying)
def verify(
    original: Annotated[Path, typer.Argument(help="reference model")],
    candidate: Annotated[Path, typer.Argument(help="model to compare with it")],
    blame: Annotated[
        bool, typer.Option("--blame", help="rank the tensors that cost the output error")
    ] = False,
    blame_check: Annotated[
        int,
        typer.Option(parser=as_whole, help="measure the drop without each of the first N suspects"),
    ] = 0,
    flips: Annotated[
        Path | None,
        typer.Option(
            "--flips", help="with --metric top1: list samples decided otherwise, .csv or .json"
        ),
    ] = None,
    population: Annotated[
        list[Path] | None,
        typer.Option(
            "--population",
            help="with --metric top1: a model made as the candidate was, as from another seed",
        ),
    ] = None,
    **options: Unpack[Verifying],
) -> None:
    """Compare the outputs of two models on the same data."""
    from lwqc.cli.report.blame import blame_dict, blame_models
    from lwqc.compile.losses import check_classes
    from lwqc.model import io
    from lwqc.model.saving import write_text
    from lwqc.plans.goals import Goals
    from lwqc.runtime.flips import list_kind, top1_of

    check_dry_run(options, flips=flips)
    if blame_check < 0:
        raise InputError(f"--blame-check {blame_check}: must not be negative")
    kind = "" if flips is None else list_kind(str(flips))
    goals = Goals(**part(Loss, options))
    alike = population or []
    files = None if flips is None else Files([flips], read=[candidate, *alike])
    with opened(original, files, part(Opened, options)) as work:
        check_classes(work, goals)
        if blame or blame_check:
            work.job.whole("--blame")
        if alike:
            work.job.whole("--population")
            if top1_of(work.job.metric) is None:
                raise InputError("--population is of decisions: give --metric top1")
        compressed = io.load(candidate)
        if options["dry_run"]:
            from lwqc.compile.forecast.forecast import of_comparison

            print_foretold(of_comparison(work, compressed), part(Printing, options))
            return
        sessions = [_alike(work, path) for path in alike]
        found, drop, changed = _compared(work, candidate, compressed, sessions)
        if flips is not None:
            if changed is None:
                raise InputError("--flips lists decisions: give --metric top1")
            write_text(flips, changed.text(kind))
        blamed = None
        if blame or blame_check:
            blamed = blame_models(work, compressed, str(candidate), drop, blame_check)
        missed = _missed(goals, found, work.job.weights.bounds, drop, changed)
        told = [f"{o.name}: asked {o.asked:.6g}, reached {o.reached:.6g}" for o in missed]
        rows = {n: vars(d) for n, d in found.items()}
        result = {"drop": drop, "outputs": rows, "missed": told}
        if changed is not None:
            result["flips"] = asdict(changed)
        if blamed is not None:
            result["blame"] = blame_dict(blamed)
        answer(result)
        if options["as_json"]:
            print(json.dumps(result, default=str, indent=1))
        else:
            _print_verified(work, found, drop, changed, blamed)
        for one in missed:
            words = f"{one.name} {one.reached:.5g} is above the allowed {one.asked:.5g}"
            errors_console().print(words)
        if missed:
            raise typer.Exit(3)


def _compared(
    work: Version, candidate: Path, compressed: ir.Model, alike: Sequence[Session]
) -> tuple[dict[str, Divergence], float, Flips | None]:
    """What a candidate's outputs are from those of the original, its drop, and what it decides.

    alike: models whose decisions count with its own.
    """
    from lwqc.compile.compared_in_parts import divergences_in_parts
    from lwqc.compile.losses import answers_of, divergences, flips_of, judged_drop
    from lwqc.runtime.measure import drop_of_others
    from lwqc.runtime.proof import prove_first
    from lwqc.runtime.session import Session

    weights = work.job.weights
    if work.job.room is not None:  # where there is no metric
        found = divergences_in_parts(work, compressed)
        return found, drop_of_others(found, weights.said, weights.bounds), None
    prove_first(compressed, work.job.data.fit.first, str(candidate))
    answers = answers_of(work, Session(candidate, label=str(candidate)))
    found = divergences(work, answers)
    if not work.job.metric:
        return found, drop_of_others(found, weights.said, weights.bounds), None
    return found, judged_drop(work, answers), flips_of(work, answers, *alike)


def _alike(work: Version, path: Path) -> Session:
    """A model of a population. Raises InputError where its outputs are not as the original's."""
    from lwqc.model import io
    from lwqc.runtime.proof import prove_first
    from lwqc.runtime.session import Session

    prove_first(io.load(path), work.job.data.fit.first, str(path))
    session, first = Session(path, label=str(path)), work.job.data.fit.first()
    made, wanted = session(first), work.original.session(first)
    for name, value in wanted.items():
        found = made.get(name)
        if found is None or found.shape != value.shape:
            sizes = "none" if found is None else str(list(found.shape))
            raise InputError(
                f"--population {path}: output {name} is {list(value.shape)}, there it is {sizes}"
            )
    return session


def _missed(
    goals: Goals,
    found: Mapping[str, Divergence],
    bounds: Mapping[str, float],
    drop: float,
    changed: Flips | None,
) -> list[Outcome]:
    """Bounds that are exceeded."""
    from lwqc.compile.outcomes import class_outcome, drop_outcome, output_outcomes

    outcomes = output_outcomes(found, bounds)
    if goals.max_drop is not None:
        outcomes.append(drop_outcome(goals.max_drop, drop))
    if goals.max_class_drop is not None and changed is not None:
        outcomes.append(class_outcome(goals.max_class_drop, changed.worst))
    return [one for one in outcomes if not one.met]


def _print_verified(
    work: Version,
    found: Mapping[str, Divergence],
    drop: float,
    changed: Flips | None,
    blamed: Blamed | None,
) -> None:
    from lwqc.cli.report.blame import print_blame
    from lwqc.cli.report.console import Console
    from lwqc.cli.report.terminal import classes_table, divergence_table, print_decisions

    Console().print(divergence_table(found))
    print_decisions(found, Console())
    if changed is not None:
        Console().print(classes_table(changed))
    data = work.job.data.fit
    Console().print(f"drop {drop:.5g} on {data.description}")
    if blamed is not None:
        print_blame(blamed, Console(), random=data.kind == "random")
