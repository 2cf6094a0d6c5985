"""Options that several commands share, beside those that Python has too, see `lwqc.plans.options`.

Commands take them in sections, see `lwqc.cli.sections`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

import typer

from lwqc.cli.completion import VALUES
from lwqc.cli.telling import set_quiet, set_verbose, set_width
from lwqc.model.numerals import count_or_share, real, share, whole
from lwqc.model.user_code import forbid
from lwqc.plans.options import (
    Confined,
    Constant,
    Deciding,
    Dropping,
    Feeding,
    Flag,
    Kept,
    Loss,
    Measured,
    Narrowing,
    Opening,
    OutputBounds,
    Prepared,
    Pruning,
    Recovering,
    Resizable,
    Shaped,
    Spread,
    Storage,
    Targeted,
)


def as_real(text: str | float) -> float:
    """Read a number strictly, see `numerals`; defaults are numbers already."""
    try:
        return real(text) if isinstance(text, str) else text
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def as_share(text: str | float) -> float:
    """The same for a share: 0.3 or 30%."""
    try:
        return share(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def as_count_or_share(text: str | float) -> float:
    """The same for a count or a share: 4 or 30%."""
    try:
        return count_or_share(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def as_whole(text: str | int) -> int:
    """The same for whole numbers."""
    try:
        return whole(text) if isinstance(text, str) else text
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Model = Annotated[Path, typer.Argument(help="ONNX model", show_default=False)]
Output = Annotated[Path, typer.Option("-o", "--output", help="where to write the result")]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe", help="name or .toml; see `lwqc recipes`", autocompletion=VALUES["recipe"]
    ),
]
Quantize = Annotated[
    bool, typer.Option("--quantize/--no-quantize", help="or only clean the graph up")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on with a search that was killed, from OUTPUT.search")
]


class Debugging(TypedDict, total=False):
    """How errors are told, see `lwqc.cli`."""

    debug: Annotated[bool, Flag("show tracebacks", bool, False)]


class RunningCode(Debugging, total=False):
    """Whether Python code is loaded that options name."""

    no_user_code: Annotated[
        bool,
        Flag(
            "refuse module:callable: no Python code of others is imported",
            bool,
            False,
            callback=forbid,
        ),
    ]


class Telling(TypedDict, total=False):
    """How much is told beside results and errors, see `lwqc.cli.telling`."""

    quiet: Annotated[
        bool,
        Flag(
            "tell only errors, and what was asked for",
            bool,
            False,
            names=("--quiet", "-q"),
            callback=set_quiet,
        ),
    ]
    verbose: Annotated[
        bool,
        Flag(
            "tell each stage, and all details",
            bool,
            False,
            names=("--verbose", "-v"),
            callback=set_verbose,
        ),
    ]


class Printing(Telling, total=False):
    """How results are printed, and what else is told."""

    as_json: Annotated[
        bool, Flag("machine-readable result on stdout", bool, False, names=("--json",))
    ]
    width: Annotated[
        int | None,
        Flag("columns of tables; those of the terminal", int | None, callback=set_width),
    ]


class Storing(TypedDict, total=False):
    """How a model is stored."""

    external: Annotated[
        bool | None,
        Flag(
            "weights in a file of their own (default: auto)",
            bool | None,
            names=("--external-data/--inline",),
        ),
    ]


class Checking(TypedDict, total=False):
    """Whether what was saved is measured."""

    verify: Annotated[
        bool, Flag("measure the saved file", bool, True, names=("--verify/--no-verify",))
    ]


class FallingBack(TypedDict, total=False):
    """Whether a target need not run everything."""

    allow_fallback: Annotated[
        bool, Flag("accept nodes that run elsewhere; they are listed", bool, False)
    ]


class Original(TypedDict, total=False):
    """What an earlier step began with."""

    original: Annotated[
        Path | None,
        Flag("what MODEL was made of: budgets and losses are against this model", Path | None),
    ]


class Foretelling(TypedDict, total=False):
    """Whether the work is only foretold, see `lwqc.cli.running.finish`."""

    dry_run: Annotated[
        bool,
        Flag("with --memory: tell what time and memory the work will take, and end", bool, False),
    ]


class OpenedHere(Opening, Original, RunningCode, total=False):
    """What commands open a model with that use no other machines."""


class Opened(OpenedHere, Spread, total=False):
    """What `lwqc.cli.running.opened` takes."""


class Paged(TypedDict, total=False):
    """Whether there is a page to read in a browser."""

    report: Annotated[
        Path | None,
        Flag("also write an HTML page: what changed, why, and what it costs", Path | None),
    ]


class Reported(Storing, Printing, Paged, total=False):
    """How a result is stored and told of."""

    details: Annotated[bool, Flag("print one row per site", bool, False)]


class Saved(Reported, total=False):
    """What `lwqc.cli.running.finish` takes."""

    plan_out: Annotated[Path | None, Flag("also write the plan as JSON", Path | None)]


class Planning(Opened, Deciding, Telling, total=False):
    """Options of `plan`."""


class Compressing(Planning, Saved, total=False):
    """Options of `compress`."""


class Changing(OpenedHere, Loss, OutputBounds, Saved, Checking, total=False):
    """Options of commands that make one change and bound what it loses."""


class Quantizing(Storage, Narrowing, Changing, Spread, Foretelling, total=False):
    """Options of `quantize`."""


class PruningCommand(Pruning, Changing, total=False):
    """Options of `prune`."""


class DroppingCommand(Dropping, Changing, total=False):
    """Options of `drop`."""


class RecoveringCommand(Recovering, RunningCode, Storing, Printing, Paged, Checking, total=False):
    """Options of `recover`."""


class Lowering(OpenedHere, OutputBounds, Saved, Checking, FallingBack, Foretelling, total=False):
    """Options of `lower`."""


class Planned(Feeding, Measured, Constant, Kept, Confined, Original, RunningCode, total=False):
    """What a model is opened with where a plan names the target."""


class Applying(Planned, Reported, Checking, FallingBack, Spread, Foretelling, total=False):
    """Options of `apply`."""


class Vocabulary(Prepared, Constant, RunningCode, Storing, Printing, Checking, total=False):
    """Options of `vocabulary`."""


class Optimizing(Feeding, Constant, Kept, RunningCode, Storing, Printing, Checking, total=False):
    """Options of `opt`."""


class Inspecting(Shaped, Resizable, Constant, RunningCode, Printing, total=False):
    """Options of `inspect`."""


class Verifying(
    Feeding, Measured, Loss, OutputBounds, Confined, RunningCode, Printing, Foretelling, total=False
):
    """Options of `verify`."""


class Benching(Feeding, Targeted, FallingBack, RunningCode, Printing, total=False):
    """Options of `bench`."""


class Comparing(Feeding, Measured, RunningCode, Printing, Paged, total=False):
    """Options of `compare`."""


class Converting(Kept, Storing, RunningCode, Telling, total=False):
    """Options of `convert`."""


class Showing(Printing, Debugging, total=False):
    """Options of commands that only print what there is."""


class Building(Printing, RunningCode, total=False):
    """Options of `run`."""
