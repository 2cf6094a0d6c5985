"""The result of `lwqc inspect` as tables."""

from __future__ import annotations

from rich.table import Table
from rich.tree import Tree

from lwqc.cli.report.console import Console
from lwqc.cli.report.terminal import print_left_alone, print_reasons
from lwqc.decide.explain.branch_diagnostics import BranchDiagnostics
from lwqc.decide.explain.comparison import Comparison
from lwqc.decide.explain.inspection import Inspection
from lwqc.graph.cost import total
from lwqc.graph.groups import Groups
from lwqc.model.numerals import size_text


def print_inspection(
    found: Inspection,
    console: Console,
    *,
    sites: bool,
    cost: bool,
    groups: bool = False,
    branches: bool = False,
) -> None:
    """Print a summary and the tables asked for."""
    summed = total(found.costs)
    console.print(f"{found.name}: {size_text(found.size_bytes)}, opset {found.opset}")
    for label, values in (("inputs", found.inputs), ("outputs", found.outputs)):
        console.print(f"{label}: {'; '.join(values)}")
    macs = "MACs unknown" if summed.macs is None else f"{summed.macs:,} MACs"
    console.print(f"{summed.parameters:,} parameters, {macs}; shapes {found.shapes}")
    print_reasons(
        f"MACs are not known of {len(summed.unknown)} nodes:",
        [(cost.unknown, cost.name) for cost in found.costs if cost.unknown],
        console,
    )
    if sites:
        console.print(_site_table(found))
    if cost:
        console.print(_cost_table(found))
    if branches:
        _print_branches(found, console)
    if groups:
        _print_groups(found.groups, console)
    if groups or branches:
        return
    print_left_alone([], found.sites.skipped, console)


def print_comparison(found: Comparison, console: Console) -> None:
    """One row for each thing that differs, or that nothing does."""
    if not found.changes:
        console.print("no differences in sizes, operators, groups, branches or sites")
        return
    table = Table("what", "name", found.before.name, found.after.name)
    for change in found.changes:
        cells = (change.what, change.name, _cell(change.before), _cell(change.after))
        table.add_row(*cells)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_branches(found: Inspection, console: Console) -> None:
    """Residual branches by block, and the residual additions that are none."""
    macs = total(found.costs).known_macs
    tree = Tree(f"{len(found.branches.branches)} residual branches that can be removed")
    for number, block in enumerate(found.branches.blocks):
        shown = tree.add(f"block {number}")
        for branch in block:
            cost = found.branch_costs[branch.name]
            kind = "cross attention" if branch.cross else branch.kind
            share = f", {cost.macs / macs:.1%} of the MACs" if cost.macs and macs else ""
            text = f"{branch.name}: {kind}, {cost.parameters:,} parameters{share}"
            text += _effect(found.diagnostics, branch.name)
            shown.add(text)
    console.print(tree)
    print_reasons(
        f"{len(found.branches.refused)} residual additions cannot be removed:",
        [(r.reason, r.name) for r in found.branches.refused],
        console,
    )


def _effect(found: BranchDiagnostics | None, name: str) -> str:
    """What a branch does on the data, and which other branch feels most that it is skipped."""
    if found is None:
        return ""
    effect, skips = found.effects[name], found.skips
    row = skips.later[skips.names.index(name)]
    most = int(row.argmax())
    felt = f", most felt by {skips.names[most]} ({row[most]:.2f})" if row[most] else ""
    return (
        f"; cosine {effect.cosine:.4f}, |f|/|x| {effect.norm_ratio:.3f}, "
        f"void {found.voids[name]:.0%}; skipped: outputs move by "
        f"{skips.outputs[skips.names.index(name)]:.4f}{felt}"
    )


def _print_groups(groups: Groups, console: Console) -> None:
    """What can be pruned, what goes along, and what is frozen and why."""
    table = Table(title="Prunable groups", title_justify="left")
    for column in ("group", "what", "channels", "goes along (tensor:axis)"):
        table.add_column(column, justify="right" if column == "channels" else "left")
    for group in groups:
        along = list(dict.fromkeys(f"{o.name}:{o.axis}" for o in group.occurrences))
        shown = ", ".join(along[:4]) + (f" and {len(along) - 4} more" if len(along) > 4 else "")
        marks = ", ".join(sorted(group.marks)) or "channels"
        table.add_row(group.name, marks, str(group.size), shown)
    console.print(table)
    print_reasons(
        f"{len(groups.frozen)} weight axes belong to no group:",
        [(f.reason, f"{f.tensor}:{f.axis}") for f in groups.frozen],
        console,
    )
    print_reasons(
        "operators that nothing can be pruned through:",
        [(barrier.reason, barrier.name) for barrier in groups.barriers],
        console,
    )


def _site_table(found: Inspection) -> Table:
    table = Table(title="Quantizable sites", title_justify="left")
    for column in ("site", "operators", "shape", "outputs x inputs", "bytes", "uses"):
        table.add_column(column)
    for site in found.sites.sites:
        table.add_row(
            site.name,
            "+".join(sorted(site.ops)),
            "x".join(map(str, site.shape)),
            f"{site.n} x {site.k}",
            size_text(site.float_bytes),
            str(len(site.uses)),
        )
    return table


def _cost_table(found: Inspection) -> Table:
    table = Table(title="Cost per node", title_justify="left")
    for column in ("node", "operator", "parameters", "bytes", "MACs"):
        table.add_column(column, justify="left" if column in ("node", "operator") else "right")
    for row in found.costs:
        if row.parameters or row.macs:
            macs = "unknown" if row.macs is None else f"{row.macs:,}"
            table.add_row(
                row.name, row.op, f"{row.parameters:,}", size_text(row.weight_bytes), macs
            )
    return table
