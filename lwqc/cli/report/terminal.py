"""Reports as tables in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from lwqc.cli.report.console import Console
from lwqc.compile.result import (
    GroupRow,
    ParallelReport,
    PruningReport,
    RemovalReport,
    Report,
    SearchReport,
    SiteRow,
    SlicingReport,
    TokensReport,
)
from lwqc.graph.sites import Skipped
from lwqc.model.numerals import size_text
from lwqc.plans.wording import measure_text
from lwqc.quant.formats import WeightFormat
from lwqc.runtime.flips import Flips
from lwqc.runtime.measure import Latency, OperatorRow
from lwqc.runtime.stats.divergence import Divergence

_VISIBLE = 0.03  # of the time: operators that get a row
_PLURALS = {"format": "formats", "width": "widths", "branch": "branches"}
_CLASSES = 5  # in a table


def print_report(report: Report, console: Console, *, details: bool = False) -> None:
    """Print what was done, what was measured and what was not compressed."""
    console.print(summary_table(report))
    if report.divergence:
        console.print(divergence_table(report.divergence))
        print_decisions(report.divergence, console)
        if report.data_kind == "random":
            console.print(
                "measured on random data: give real data with --data for numbers "
                "that mean something",
                style="yellow",
            )
    if report.flips is not None and report.flips.flipped:
        console.print(classes_table(report.flips))
    if report.operators:
        console.print(operator_table(report))
    if details:
        if report.pruning is not None:
            console.print(group_table(report.pruning.groups))
        if not only_pruned(report):
            console.print(site_table(report.sites))
    if report.search is not None:
        print_search(report.search, report.metric or "", console)
    if report.removal is not None:
        print_removal(report.removal, console)
    if report.parallel is not None:
        print_parallel(report.parallel, console)
    if report.slicing is not None:
        print_slicing(report.slicing, console)
    if report.tokens is not None:
        print_tokens(report.tokens, console)
    if report.pruning is not None:
        print_unpruned(report.pruning, console)
    if not only_pruned(report):
        print_left_alone(report.sites, report.skipped, console)
    if details and report.untransformed:
        console.print(f"{len(report.untransformed)} tensors could not be transformed:")
        _groups(((reason, name) for name, reason in report.untransformed.items()), console)
    print_reasons(
        f"{len(report.kept_float32)} operators stay in float32:",
        [(why, name) for name, why in report.kept_float32.items()],
        console,
    )
    for line in (*report.notes, *report.fallbacks):
        console.print(line, style="yellow", highlight=False)
    if report.unmeasured:
        console.print(
            f"speed not measured: {report.unmeasured}; numbers are from the CPU provider",
            style="yellow",
        )
    for outcome in report.outcomes:
        state = "met" if outcome.met else "NOT MET"
        console.print(
            f"{outcome.name}: asked {outcome.asked:.6g} {outcome.unit}, "
            f"reached {outcome.reached:.6g} {outcome.unit}: {state}",
            style="green" if outcome.met else "red",
        )


def operator_table(report: Report) -> Table:
    """The operators that take most of the time before or after."""
    table = Table(
        title=f"Where the time goes at {report.latencies[0].shape}, profiled", title_justify="left"
    )
    table.add_column("operator")
    for column in ("original ms", "nodes", "compressed ms", "nodes"):
        table.add_column(column, justify="right")
    before = _VISIBLE * sum(row.before_ms for row in report.operators)
    after = _VISIBLE * sum(row.after_ms for row in report.operators)
    rows = [r for r in report.operators if r.before_ms >= before or r.after_ms >= after]
    rest = [r for r in report.operators if r not in rows]
    for row in rows:
        _operator_row(table, row.op, [row])
    if rest:
        _operator_row(table, f"{len(rest)} others", rest)
    return table


def _operator_row(table: Table, name: str, rows: Sequence[OperatorRow]) -> None:
    table.add_row(
        name,
        f"{sum(r.before_ms for r in rows):.3f}",
        str(sum(r.nodes_before for r in rows)),
        f"{sum(r.after_ms for r in rows):.3f}",
        str(sum(r.nodes_after for r in rows)),
    )


def print_search(search: SearchReport, metric: str, console: Console) -> None:
    """What was searched, and what it brought. metric: that it may have been searched by."""
    parts = [f"{changed} of {n} {_PLURALS[kind]}" for kind, (changed, n) in search.items.items()]
    console.print(f"search: {', '.join(parts)} changed, effort {search.effort}")
    console.print(
        f"judged by the {measure_text(search.measure, metric)}: {search.start:.4g} at the start, "
        f"{search.best:.4g} after {search.generations} generations "
        f"({search.evaluations} evaluations, {search.seconds:.0f} s)"
    )
    for note in search.notes:
        console.print(note, style="yellow")


def row_table(reports: Sequence[Report]) -> Table:
    """One line per model of a row."""
    table = Table(title=f"{reports[0].source}: {len(reports)} models", title_justify="left")
    for column in ("file", "size", "ratio", "latency", "drop", "metric", "bits"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for report in reports:
        faster = "" if report.speedup is None else f"{1 / report.speedup:.2f}"
        table.add_row(
            report.output,
            size_text(report.output_bytes),
            f"{report.output_bytes / max(report.source_bytes, 1):.3f}",
            faster,
            "" if report.drop is None else f"{report.drop:.4f}",
            "" if report.metric_after is None else f"{report.metric_after:.4f}",
            f"{report.average_bits:.2f}",
        )
    return table


def summary_table(report: Report) -> Table:
    """What the result takes and reaches, beside the original."""
    way = " -> ".join((report.source, *report.earlier, report.output))
    table = Table(title=way, title_justify="left")
    for column in ("", "original", "compressed", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    ratio = report.output_bytes / max(report.source_bytes, 1)
    table.add_row(
        "size", size_text(report.source_bytes), size_text(report.output_bytes), f"{ratio:.3f}"
    )
    for row in report.latencies:
        table.add_row(
            "latency" if len(report.latencies) == 1 else row.shape,
            latency_text(row.before),
            latency_text(row.after),
            f"{row.speedup:.2f}x faster" if row.speedup >= 1 else f"{1 / row.speedup:.2f}x slower",
        )
    for name, pair in report.weighed.items():
        if pair is not None:
            old, new = pair
            table.add_row(name, size_text(old), size_text(new), f"{new / max(old, 1):.3f}")
    if report.metric and report.metric_before is not None and report.metric_after is not None:
        table.add_row(
            report.metric,
            f"{report.metric_before:.4f}",
            f"{report.metric_after:.4f}",
            f"{report.metric_after - report.metric_before:+.4f}",
        )
    if report.pruning is not None:
        for label, (old, new) in (
            ("MACs", report.pruning.macs),
            ("parameters", report.pruning.parameters),
        ):
            table.add_row(label, f"{old:,}", f"{new:,}", f"{new / max(old, 1):.3f}")
    if only_pruned(report):
        table.caption = f"data: {report.data}"
        return table
    forms = Counter(map(form_text, report.sites))
    used = "; ".join(f"{count} x {form}" for form, count in forms.most_common())
    bits = f"{report.average_bits:.2f} bits per weight"
    if report.entropy is not None:
        stored, entropy = report.entropy
        bits += f", of dense codes and codebooks {stored:.2f} with an entropy of {entropy:.2f}"
    table.caption = "; ".join([*([used] if used else []), bits, f"data: {report.data}"])
    return table


def form_text(row: SiteRow) -> str:
    """How a weight is stored and what runs it: `8 bits per channel, unpacked at load`."""
    if row.format.startswith(row.kernel):  # floats
        return row.format
    return f"{WeightFormat.parse(row.format).words}, {kernel_text(row)}"


def only_pruned(report: Report) -> bool:
    """Whether the structure changed, and no number format did."""
    parts = (report.pruning, report.removal, report.parallel, report.slicing, report.tokens)
    taken = any(part is not None for part in parts)
    return taken and all(row.format == "float" for row in report.sites)


def print_removal(removal: RemovalReport, console: Console) -> None:
    """What went in which order at what price, and what could not go."""
    if removal.branches:
        console.print(branch_table(removal))
    else:
        console.print(f"0 of {removal.there_were} residual branches removed", highlight=False)
    for note in removal.notes:
        console.print(note, style="yellow")
    for title, names in (
        ("inputs that are gone", removal.dropped_inputs),
        ("outputs that are gone", removal.dropped_outputs),
        ("outputs that repeat an input", [f"{o} = {i}" for o, i in removal.passed_through.items()]),
        ("layers of removed branches that stay, as others read them", removal.left),
    ):
        if names:
            console.print(f"{title}: {', '.join(names)}", highlight=False)
    print_reasons(
        "outputs of removed branches that are still computed:",
        [(why, name) for name, why in removal.still_computed.items()],
        console,
    )
    print_reasons(
        f"{len(removal.refused)} residual additions are no removable branch:",
        [(why, name) for name, why in removal.refused],
        console,
    )


def print_parallel(parallel: ParallelReport, console: Console) -> None:
    """Which pairs became parallel, and what that costs."""
    console.print(parallel_table(parallel))
    if parallel.latency_ms is not None:
        before, after = parallel.latency_ms
        console.print(f"latency: {before:.3g} ms, parallel {after:.3g} ms")
    if parallel.note:
        unchanged = "" if parallel.pairs else ": the model is unchanged"
        console.print(f"{parallel.note}{unchanged}", style="yellow")


def parallel_table(parallel: ParallelReport) -> Table:
    """One row per pair that was tried."""
    total = "" if parallel.there_were is None else f" of {parallel.there_were}"
    made = "made parallel" if parallel.pairs else "tried"
    title = f"{len(parallel.tried)}{total} pairs of adjacent branches {made}"
    table = Table(title=title, title_justify="left")
    priced = any(row[2] is not None for row in parallel.tried)
    columns = ["first", "second", *([f"divergence ({parallel.measure})"] if priced else [])]
    for column in columns:
        table.add_column(column)
    for first, second, divergence in parallel.tried:
        table.add_row(first, second, *([_number(divergence)] if priced else []))
    return table


def print_slicing(slicing: SlicingReport, console: Console) -> None:
    """Which streams got how narrow, and which could not."""
    for group, width in slicing.streams:
        console.print(f"residual stream {group}: now {width} wide", highlight=False)
    if slicing.macs is not None and not slicing.note:
        before, after = slicing.macs
        console.print(f"MACs: {before:,} -> {after:,}", highlight=False)
    if slicing.note:
        console.print(f"{slicing.note}: the model is unchanged", style="yellow")
    print_reasons(
        "residual streams that could not be narrowed:",
        [(why, name) for name, why in slicing.left.items()],
        console,
    )


def classes_table(found: Flips) -> Table:
    """All samples, then the classes that lost most, with 95 % intervals."""
    many = found.models > 1
    by = f" by most of {found.models} models" if many else ""
    title = f"{len(found.flipped)} of {found.samples} decisions flipped{by}; classes that lost most"
    table = Table(title=title, title_justify="left")
    columns = ["class", "samples", "before", "after", "change", "95 % interval"]
    for column in (*columns, *(["single models"] if many else [])):
        table.add_column(column)
    for one in (found.whole, *[c for c in found.classes if c.drop > 0][:_CLASSES]):
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        shares = (f"{one.before:.3f}", f"{one.after:.3f}", f"{one.after - one.before:+.3f}")
        alone = [f"{one.least:.3f} to {one.most:.3f}"] if many else []
        table.add_row(one.name, str(one.samples), *shares, interval, *alone)
    return table


def tokens_table(tokens: TokensReport) -> Table:
    """One row for each place behind which fewer tokens are left, in order."""
    saved = "" if tokens.saved is None else f", {tokens.saved:.0%} fewer products"
    table = Table(title=f"tokens that attention reads most stay{saved}", title_justify="left")
    priced = any(step[3] is not None for step in tokens.steps)
    columns = ["behind", "tokens", "of", *([f"divergence ({tokens.measure})"] if priced else [])]
    for column in columns:
        table.add_column(column)
    for branch, keep, of, divergence in tokens.steps:
        table.add_row(branch, str(keep), str(of), *([_number(divergence)] if priced else []))
    return table


def print_tokens(tokens: TokensReport, console: Console) -> None:
    """Where how many tokens are left, and where none could go."""
    console.print(tokens_table(tokens))
    print_reasons(
        "attention behind which all tokens stay:",
        [(why, name) for name, why in tokens.left.items()],
        console,
    )


def branch_table(removal: RemovalReport) -> Table:
    """One row per removed branch, in the order of their removal."""
    title = f"{len(removal.branches)} of {removal.there_were} residual branches removed"
    table = Table(title=title, title_justify="left")
    columns = ["", "branch", "kind"]
    priced = any(row.divergence is not None for row in removal.branches)
    replaced = any(row.compensation for row in removal.branches)
    before = "divergence before that" if replaced else "divergence"
    divergence = f"{before} ({removal.measure})"
    columns += ["score", divergence] if priced else []
    columns += ["in its place"] if replaced else []
    for column in columns:
        table.add_column(column)
    for row in removal.branches:
        numbers = [_number(row.score), _number(row.divergence)] if priced else []
        table.add_row(
            str(row.step), row.name, row.kind, *numbers, *([row.compensation] if replaced else [])
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def group_table(rows: Iterable[GroupRow]) -> Table:
    """One row per group of channels."""
    table = Table(title="Groups", title_justify="left")
    for column in ("group", "what", "channels", "why"):
        table.add_column(column)
    for row in rows:
        channels = f"{row.before} -> {row.after}" if row.after != row.before else str(row.before)
        table.add_row(row.name, ", ".join(row.marks) or "channels", channels, row.reason)
    return table


def print_unpruned(pruning: PruningReport, console: Console) -> None:
    """Everything that could not be pruned or refitted, grouped by reason."""
    whole = [g for g in pruning.groups if g.reason]
    sections = (
        (
            f"{len(whole)} of {len(pruning.groups)} groups stayed whole:",
            [(g.reason, g.name) for g in whole],
        ),
        (
            f"{len(pruning.frozen)} weight axes belong to no group:",
            [(why, f"{name}:{axis}") for name, axis, _, why in pruning.frozen],
        ),
        ("operators that nothing can be pruned through:", [(w, n) for n, w in pruning.barriers]),
        ("layers that were not refitted:", [(w, n) for n, w in pruning.not_refitted]),
    )
    for note in pruning.notes:
        console.print(note, style="yellow")
    for title, pairs in sections:
        print_reasons(title, pairs, console)


def print_reasons(title: str, pairs: Sequence[tuple[str, str]], console: Console) -> None:
    """A list of (reason, name) grouped by reason; nothing when it is empty."""
    if pairs:
        console.print(title)
        _groups(pairs, console)


def latency_text(latency: Latency) -> str:
    """Median and spread."""
    return f"{latency.median_ms:.2f} ms [{latency.p10_ms:.2f}..{latency.p90_ms:.2f}]"


def divergence_table(divergence: Mapping[str, Divergence]) -> Table:
    """One row per output."""
    table = Table(title="Divergence from the original", title_justify="left")
    table.add_column("output")
    for column in ("loss", "by channel", "worst channel", "cosine", "max abs"):
        table.add_column(column, justify="right")
    for name, d in divergence.items():
        channel, error = d.worst_channel
        worst = (
            "" if d.channel_axis is None else f"{error:.3g} ({channel} of axis {d.channel_axis})"
        )
        table.add_row(
            name, f"{d.drop:.5f}", f"{d.error:.3g}", worst,
            "n/a" if d.cosine_mean is None else f"{d.cosine_mean:.5g}", f"{d.max_abs:.4g}",
        )  # fmt: skip
    return table


def print_decisions(divergence: Mapping[str, Divergence], console: Console) -> None:
    """Shares of decisions that are the same, a line for each output that makes any."""
    for name, d in divergence.items():
        shares = [f"{what} {share:.2%}" for what, share in d.decisions.shares().items()]
        if shares:
            console.print(f"  {name}: decisions kept: {', '.join(shares)}", highlight=False)


_AT_LOAD = {"Folded": "unpacked at load", "UnpackedInteger": "8 bits from load on"}


def kernel_text(row: SiteRow) -> str:
    """What runs a site, as docs/index.md calls it."""
    return _AT_LOAD.get(row.kernel, row.kernel)


def site_table(rows: Iterable[SiteRow]) -> Table:
    """One row per site."""
    table = Table(title="Sites", title_justify="left")
    for column in ("site", "operator", "shape", "format", "activation", "kernel", "bytes", "why"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name,
            row.op,
            "x".join(map(str, row.shape)),
            row.format,
            row.activation,
            kernel_text(row),
            f"{size_text(row.bytes_before)} -> {size_text(row.bytes_after)}",
            row.reason,
        )
    return table


def print_left_alone(rows: Sequence[SiteRow], skipped: Sequence[Skipped], console: Console) -> None:
    """Everything that could have been compressed further and was not, grouped by reason."""
    kept = [r for r in rows if r.reason]
    if kept:
        console.print(f"{len(kept)} of {len(rows)} sites are float, or not all that they could be:")
        _groups(((r.reason, r.name) for r in kept), console)
    if skipped:
        total = sum(s.size for s in skipped)
        console.print(f"{len(skipped)} other tensors ({total:,} values) take no format:")
        _groups(((s.reason, s.name) for s in skipped), console)


def _groups(pairs: Iterable[tuple[str, str]], console: Console) -> None:
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(reason, []).append(name)
    for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        console.print(f"  {len(names)} x {reason}: {shown}", highlight=False)
