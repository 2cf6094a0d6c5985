"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lwqc.model.numerals import real, whole
from lwqc.model.user_code import forbid


def as_real(text: str | float) -> float:
    """Read a number strictly, see `numerals`; defaults are numbers already."""
    try:
        return real(text) if isinstance(text, str) else text
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
Target = Annotated[
    str,
    typer.Option(help="cpu (this one), cpu-vnni, cpu-avx2, cpu-arm, cuda or tensorrt"),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help=".npz, .npy, a folder of .npz, module:callable or random[:N]"),
]
MetricOption = Annotated[str | None, typer.Option(help="module:function(run) -> number")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", help="sizes of dynamic dimensions, batch=8,seq=128; again for each shape served"
    ),
]
ConstantInputs = Annotated[
    bool,
    typer.Option("--constant-inputs", help="inputs with a default value cannot be overridden"),
]
OriginalOption = Annotated[
    Path | None,
    typer.Option(
        "--original", help="what MODEL was made of: budgets and losses are against this model"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable result on stdout")]
NoUserCode = Annotated[
    bool,
    typer.Option(
        "--no-user-code",
        callback=forbid,
        help="refuse module:callable: no Python code of others is imported",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="show tracebacks")]
PlanOut = Annotated[Path | None, typer.Option("--plan-out", help="also write the plan as JSON")]
Details = Annotated[bool, typer.Option("--details", help="print one row per site")]
SizeOption = Annotated[str | None, typer.Option("--max-size", help="0.25 of the original, or 20MB")]
LatencyOption = Annotated[
    str | None, typer.Option("--max-latency", help="0.5 of the original, or 8ms")
]
MacsOption = Annotated[
    str | None, typer.Option("--max-macs", help="0.5 of the original's products, or 300M")
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", help="0.5 of what a process with the original takes, or 200MB"),
]
BitsOption = Annotated[
    float | None, typer.Option("--avg-bits", parser=as_real, help="stored bits per weight")
]
FastestOption = Annotated[
    bool, typer.Option("--fastest", help="with --max-drop: the fastest, not the smallest")
]
DropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop", parser=as_real, help="allowed loss: of the metric, else of the outputs"
    ),
]
QuantizeOption = Annotated[
    bool, typer.Option("--quantize/--no-quantize", help="or only clean the graph up")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="name or .toml; see `lwqc recipes`")]
External = Annotated[
    bool | None,
    typer.Option("--external-data/--inline", help="weights in a file of their own (default: auto)"),
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="measure the saved file")]
Seed = Annotated[int, typer.Option(parser=as_whole, help="seed of random data")]
RatioOption = Annotated[
    float | None,
    typer.Option(parser=as_real, help="share of the MACs that goes (or of what --by says)"),
]
ByOption = Annotated[
    str | None, typer.Option(help="macs, parameters, or channels (the same share of every group)")
]
ScoreOption = Annotated[
    str | None, typer.Option(help="l1, l2, fpgm, wanda, obs, ablation, taylor or one of your own")
]
ScopeOption = Annotated[
    str | None, typer.Option(help="global: cheapest of the model; local: same share everywhere")
]
NormaliseOption = Annotated[
    str | None, typer.Option(help="between groups: none, mean, sum, max or lamp")
]
CompensateOption = Annotated[
    str | None, typer.Option(help="none, bias or refit (least squares), on the data")
]
GroupOption = Annotated[
    list[str] | None, typer.Option("--group", help="GROUP=share for one group or pattern")
]
ResizableOption = Annotated[
    list[str] | None, typer.Option("--resizable-output", help="output that may get narrower")
]
BranchesOption = Annotated[
    str | None, typer.Option("--branches", help="how many go: 4, or 25% of them")
]
KindOption = Annotated[
    str | None,
    typer.Option(help="attention, mlp, convolution, other, any, or block for whole blocks"),
]
BranchScoreOption = Annotated[
    str | None,
    typer.Option(
        "--score",
        help="similarity, lim, angular, norm-ratio or void (one pass); ablation, ablation-once "
        "or metric (trials); accept (whatever may go); random",
    ),
]
MeasureOption = Annotated[
    str | None, typer.Option(help="of the outputs' divergence: js, kl, angular, norm or channels")
]
BranchCompensateOption = Annotated[
    str | None,
    typer.Option(
        "--compensate", help="none, mean, or linear (the layer before takes over), on the data"
    ),
]
LossOption = Annotated[
    str | None, typer.Option(help="module:function(outputs, feeds) -> number, for --score taylor")
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="accept nodes that run elsewhere; they are listed")
]
AllowDrift = Annotated[
    bool,
    typer.Option("--allow-drift", help="also with another model, other data or other versions"),
]
EffortOption = Annotated[str, typer.Option(help="of a search: low, medium or high")]
TimeLimitOption = Annotated[
    float | None,
    typer.Option("--time-limit", parser=as_real, help="seconds of a search; then the best so far"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        parser=as_whole, help="processes that evaluate candidates (default: where they pay)"
    ),
]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="address of a Dask scheduler that evaluates candidates")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="go on with a search that was killed, from OUTPUT.search")
]
ParetoOption = Annotated[
    int | None,
    typer.Option(
        "--pareto",
        parser=as_whole,
        help="that many models, down to the budget: OUTPUT-1, OUTPUT-2, ...",
    ),
]
