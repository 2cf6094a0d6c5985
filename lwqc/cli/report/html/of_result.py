"""The page on a compressed, pruned, quantized or lowered model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lwqc.cli.report.html.axes import front
from lwqc.cli.report.html.of_rich import of_rich
from lwqc.cli.report.html.outline import side_by_side
from lwqc.cli.report.html.page import (
    Block,
    Cell,
    Depth,
    Layer,
    Lines,
    Look,
    Mark,
    Outline,
    Page,
    Scatter,
    Source,
    Table,
    section,
    table,
)
from lwqc.cli.report.html.reasons import reasons
from lwqc.cli.report.plan_text import plan_heading, plan_steps
from lwqc.cli.report.terminal import (
    branch_table,
    classes_table,
    divergence_table,
    group_table,
    kernel_text,
    only_pruned,
    parallel_table,
    summary_table,
    tokens_table,
)
from lwqc.compile.compressed import Compressed
from lwqc.compile.result import Report, SearchTrace, SiteRow, Tried
from lwqc.decide.mixed import known_sensitivities
from lwqc.model.numerals import size_text
from lwqc.plans.wording import measure_text
from lwqc.runtime.flips import Flips
from lwqc.runtime.session import VERSION
from lwqc.runtime.stats.decisions import Agreement

_LARGE = 1e4  # numbers without digits behind the point
_FLIPS = 100  # samples that are listed
_LONGEST_PLAN = 1_000_000  # characters that a page shows


def result_page(done: Compressed, report: Report, command: str) -> Page:
    """What was done, what it brought, and what was left. command: that makes it again."""
    return Page(
        title=f"{report.source} → {report.output}",
        facts=(*plan_heading(done.plan), f"measured with onnxruntime {VERSION}"),
        sections=(
            section("What it brought", *_measures(report)),
            section("What changed, and why", _changes(done)),
            section("Along the depth", _depth(done, report)),
            section("Quality", *_quality(report)),
            section("Sensitivity", _sensitivity(done)),
            section("The search", *_search(done)),
            section("Weights", None if only_pruned(report) else _sites(report.sites)),
            section("Structure", *_structure(report)),
            section("Where the time goes", _operators(report)),
            section("Left as it is", reasons(report)),
            section("Before and after", _outlines(done, report)),
            section("Again", *_again(done, command)),
        ),
    )


def _measures(report: Report) -> Iterator[Block | None]:
    """Beside the original, with the spread of times; and whether bounds are met."""
    yield of_rich(summary_table(report))
    rows = [
        (
            outcome.name,
            _number(outcome.asked, outcome.unit),
            _number(outcome.reached, outcome.unit),
            Cell("met", tone="good") if outcome.met else Cell("NOT MET", tone="bad"),
            outcome.why,
        )
        for outcome in report.outcomes
    ]
    yield table(["bound", "asked", "reached", "", "why"], rows, numeric=[1, 2])
    if report.data_kind == "random" and report.divergence:
        yield Lines(
            (
                "Measured on random data: give real data with --data for numbers that mean "
                "something.",
            ),
            tone="note",
        )
    if not report.divergence:
        yield Lines(("Not verified: the saved file was neither loaded nor measured.",), tone="note")


def _number(value: float, unit: str) -> Cell:
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.6g}"
    return Cell(f"{text} {unit}".rstrip(), value)


def _changes(done: Compressed) -> Lines:
    return Lines(tuple(plan_steps(done.plan)) or ("Nothing: the model stays as it is.",))


def _depth(done: Compressed, report: Report) -> Depth | None:
    """Bits, widths and what went, in the order of the weights in the graph."""
    rows = {row.name: row for row in report.sites}
    before = done.work.sites
    named = {before.get(name, now).name: now for name, now in done.sites.items()}
    layers = []
    for name, site in before.items():
        row, now = rows.get(name), named.get(name)
        if row is None or now is None:
            layers.append(Layer(name, 0.0, 0.0, "removed"))
            continue
        kept = min(now.size / max(site.size, 1), 1.0)
        bits = 8 * row.bytes_after / max(now.size, 1)
        width = "" if kept == 1 else f", {kept:.0%} of the weights left"
        layers.append(Layer(name, bits, kept, f"{row.format}, {bits:.2f} bits{width}"))
    if not layers:
        return None
    return Depth(
        tuple(layers),
        caption="Each bar is a weight, in the order of the graph: its height the bits that are "
        "stored per weight, its filled part the share of the weights that is left.",
    )


def _quality(report: Report) -> Iterator[Block | None]:
    if not report.divergence:
        return
    yield of_rich(divergence_table(report.divergence))
    if report.flips is not None and report.flips.flipped:
        yield of_rich(classes_table(report.flips))
        yield _flipped(report.flips)
    rows = [
        _decisions(name, decision, share, found.decisions)
        for name, found in report.divergence.items()
        for decision, share in found.decisions.shares().items()
    ]
    yield table(
        ["output", "decisions", "kept", "of", "95 % interval"],
        rows,
        title="Decisions",
        caption="The interval is that of as many independent decisions; those of one input hardly "
        "are.",
        numeric=[2, 3],
    )
    flips: list[list[Cell | str]] = [
        [name, *(Cell(str(number), number) for number in flip)]
        for name, found in report.divergence.items()
        for flip in found.flips
    ]
    yield table(
        ["output", "largest channel", "became", "times"],
        flips,
        title="The largest channel, where it became another one",
        caption="The most frequent ones, by number.",
        numeric=[1, 2, 3],
    )


def _decisions(output: str, name: str, share: float, found: Agreement) -> list[Cell | str]:
    low, high = found.interval(name)
    of = found.counted[name]
    kept = Cell(f"{share:.2%}", share, share)
    return [output, name, kept, Cell(f"{of:,.0f}", of), f"{low:.2%} to {high:.2%}"]


def _flipped(found: Flips) -> Table | None:
    """Samples one by one, by which a reader finds them in the data."""
    rows: list[list[Cell | str]] = [
        [Cell(str(flip.sample), flip.sample), flip.right or "", flip.before, flip.after]
        for flip in found.flipped[:_FLIPS]
    ]
    left = len(found.flipped) - len(rows)
    return table(
        ["sample", "right", "before", "after"],
        rows,
        title="Samples that are decided otherwise",
        caption="Counted from 0." + (f" And {left} more: lwqc verify --flips." if left else ""),
        numeric=[0],
    )


def _sensitivity(done: Compressed) -> Table | None:
    """Of what a search chose from, or of sites that were measured to choose formats."""
    if done.trace is not None:
        chosen = done.trace.chosen
        longest = {c.kind: _longest([d.most for d in chosen if d.kind == c.kind]) for c in chosen}
        return table(
            ["name", "what", "became", "predicted error", "at its strongest"],
            [
                (c.name, c.kind, c.level, _error(c.error), _error(c.most, longest[c.kind]))
                for c in chosen
            ],
            caption="Relative squared error at the outputs that each choice alone is predicted "
            "to cost; bars compare choices of one kind.",
            numeric=[3, 4],
        )
    layout, found = known_sensitivities(done.work)
    most = _longest(list(found.values()))
    return table(
        ["weight", "error at the outputs"],
        [(name, _error(error, most)) for name, error in found.items()],
        caption=f"Relative squared error at the outputs with that weight alone in {layout}.",
        numeric=[1],
    )


def _longest(values: Sequence[float]) -> float:
    return max((v for v in values if math.isfinite(v)), default=0.0)


def _error(error: float, longest: float | None = None) -> Cell:
    """longest: what the longest bar stands for; None for no bar."""
    bar = error / longest if longest and math.isfinite(error) else None
    return Cell(f"{error:.3g}", error, bar)


def _search(done: Compressed) -> Iterator[Block | None]:
    search = done.search
    if search is None:
        return
    items = ", ".join(f"{n} of {of} {kind} items" for kind, (n, of) in search.items.items())
    yield Lines(
        (
            f"{items} changed, effort {search.effort}, seed {search.seed}.",
            f"Judged by the {_judged_by(done, search.measure)}: {search.start:.4g} at the start, "
            f"{search.best:.4g} after {search.generations} generations "
            f"({search.evaluations} evaluations, {search.seconds:.0f} s).",
        )
    )
    yield search_chart(done)


def search_chart(done: Compressed) -> Scatter | None:
    """What a search tried; None where there was none."""
    if done.trace is None or done.search is None:
        return None
    return _pareto(done.trace, _judged_by(done, done.search.measure))


def _judged_by(done: Compressed, measure: str) -> str:
    metric = done.work.job.metric
    return measure_text(measure, "" if metric is None else metric.name)


def _pareto(trace: SearchTrace, measure: str) -> Scatter | None:
    """What was tried, by cost and score, and the curve of the best."""
    tried = [t for t in trace.tried if math.isfinite(t.score) and math.isfinite(t.cost)]
    on_front = front([(t.cost, t.score) for t in tried])
    in_bytes = trace.cost.endswith("_bytes")

    def mark(one: Tried, look: Look, what: str = "") -> Mark:
        cost = size_text(one.cost) if in_bytes else f"{one.cost:.5g}"
        return Mark(one.cost, one.score, f"{what}{cost}, {measure} {one.score:.4g}", look)

    marks = [mark(t, "front" if b else "tried") for t, b in zip(tried, on_front, strict=True)]
    if math.isfinite(trace.start.score):
        marks.append(mark(trace.start, "start", "start: "))
    if math.isfinite(trace.best.score):
        marks.append(mark(trace.best, "best", "chosen: "))
    if not marks:
        return None
    return Scatter(
        x_name=f"predicted {trace.cost.removesuffix('_bytes').replace('_', ' ')}",
        y_name=measure,
        marks=tuple(marks),
        limit=trace.limit,
        x_is_bytes=in_bytes,
        caption=f"{len(tried)} candidates that were scored on all judging data; the line joins "
        "those that no other one beats, the dashed line is the limit.",
    )


def _operators(report: Report) -> Table | None:
    """Of a profiled run; bars share one length, so that before and after compare."""
    if not report.operators:
        return None
    longest = max(max(row.before_ms, row.after_ms) for row in report.operators) or 1.0

    def time(value: float) -> Cell:
        return Cell(f"{value:.3f}", value, value / longest)

    return table(
        ["operator", "original ms", "nodes", "compressed ms", "nodes"],
        [
            (
                row.op,
                time(row.before_ms),
                Cell(str(row.nodes_before), row.nodes_before),
                time(row.after_ms),
                Cell(str(row.nodes_after), row.nodes_after),
            )
            for row in report.operators
        ],
        caption=f"At {report.latencies[0].shape}, profiled.",
        numeric=[1, 2, 3, 4],
    )


def _sites(rows: Sequence[SiteRow]) -> Table | None:
    most = max((row.bytes_after for row in rows), default=1)
    return table(
        ["weight", "operator", "shape", "format", "activation", "kernel", "before", "after", "why"],
        [
            (
                row.name,
                row.op,
                "x".join(map(str, row.shape)),
                row.format,
                row.activation,
                kernel_text(row),
                Cell(size_text(row.bytes_before), row.bytes_before),
                Cell(size_text(row.bytes_after), row.bytes_after, row.bytes_after / max(most, 1)),
                row.reason,
            )
            for row in rows
        ],
        numeric=[6, 7],
    )


def _structure(report: Report) -> Iterator[Block | None]:
    if report.removal is not None and report.removal.branches:
        yield of_rich(branch_table(report.removal))
    if report.parallel is not None:
        yield of_rich(parallel_table(report.parallel))
    if report.slicing is not None:
        rows = [(group, Cell(str(width), width)) for group, width in report.slicing.streams]
        yield table(["residual stream", "width now"], rows, numeric=[1])
    if report.tokens is not None:
        yield of_rich(tokens_table(report.tokens))
    if report.pruning is not None:
        yield of_rich(group_table(report.pruning.groups))


def _outlines(done: Compressed, report: Report) -> Outline:
    gone = [] if report.removal is None else [b.name for b in report.removal.branches]
    return side_by_side(
        (done.work.name, done.work.begun.model, gone), (report.output, done.model, ())
    )


def _again(done: Compressed, command: str) -> Iterator[Block]:
    yield Source(command, title="The command")
    text = done.plan.text
    if len(text) <= _LONGEST_PLAN:
        yield Source(text, title="The plan, for lwqc apply", folded=True)
    else:
        size = size_text(len(text))
        yield Lines((f"The plan is too long for a page ({size}): --plan-out writes it.",))
