"""A plan for readers: what it depends on, its steps in order, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from lwqc.plans.plan import DataSource, Plan, SiteEntry

_NAMED = 8  # names in a line; the others are counted


def plan_text(plan: Plan) -> str:
    """The summary, as lines of text."""
    lines = [*_heading(plan), "steps, in this order:"]
    steps = list(_steps(plan))
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, 1)]
    if not steps:
        lines.append("  none: the model stays as it is")
    lines += _reasons("stays float, or partly so:", plan.kept_float)
    lines += _reasons("could not be transformed:", plan.untransformed)
    lines += _reasons("notes:", dict.fromkeys(plan.notes, ""))
    return "\n".join(lines) + "\n"


def plan_line(made: Plan, sites: int) -> str:
    """What a plan does, in a line. sites: how many the model has."""
    counts = {
        "branches removed": len(made.remove),
        "pairs of branches made parallel": len(made.parallel),
        "streams narrowed": len(made.slice),
        "channels removed": len(made.prune.units) if made.prune is not None else 0,
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if made.clean is not None:
        parts.insert(0, "the graph cleaned up")
    if made.quantize or not parts:
        parts.append(f"{len(made.quantize)} of {sites} sites planned")
    return ", ".join(parts)


def entry_text(entry: SiteEntry) -> str:
    """What happens to one site: `w4b32h, dynamic activations, gptq`."""
    parts = [entry.layout]
    if entry.activation != "none":
        parts.append(f"{entry.activation} activations")
    if entry.method != "rtn":
        parts.append(entry.method)
    if not entry.search:
        parts.append("plain range")
    parts += [f"{what} {n}" for what, n in (("rank", entry.rank), ("columns", entry.columns)) if n]
    return ", ".join(parts)


def channels_by_group(plan: Plan) -> dict[str, list[int]]:
    """Channels that are removed, by group."""
    found: dict[str, list[int]] = {}
    for unit in plan.prune.units if plan.prune is not None else ():
        found.setdefault(unit.group, []).append(unit.index)
    return found


def _heading(plan: Plan) -> Iterator[str]:
    recipe = f", recipe {plan.recipe}" if plan.recipe else ""
    yield f"{plan.source.name or 'a model'} ({plan.source.digest[:12]}) for {plan.target}{recipe}"
    if plan.budgets:
        yield f"asked for: {', '.join(f'{name} {value}' for name, value in plan.budgets.items())}"
    if plan.data is not None:
        yield f"made on {_data(plan.data)}"
    if plan.tools:
        yield f"made with {', '.join(f'{name} {version}' for name, version in plan.tools.items())}"


def _data(data: DataSource) -> str:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in data.shapes.items())
    given = "" if data.given else ", as none was given"
    return f"{data.name} ({data.feeds} feeds, the first {shapes}{given})"


def _steps(plan: Plan) -> Iterator[str]:
    yield from _structure(plan)
    if plan.transforms:
        yield (
            f"{len(plan.transforms.rotations)} streams are rotated, channels scaled in "
            f"{len(plan.transforms.scales)} places"
        )
    if plan.sparse:
        methods: Counter[str] = Counter(e.method for e in plan.sparse.values())
        yield f"2:4 sparsity of {len(plan.sparse)} weights: {_counts(methods)}"
    if plan.quantize:
        order = ", each for what those before it give" if plan.sequential else ""
        by_format = _sites_by_format(plan).items()
        lines = (f"\n     {len(sites)} to {text}: {_names(sites)}" for text, sites in by_format)
        yield f"{len(plan.quantize)} sites are quantized{order}:{''.join(lines)}"
    if plan.floats is not None:
        kept = f"; {len(plan.floats.keep)} operators stay in float32" if plan.floats.keep else ""
        yield f"the model computes in {plan.floats.dtype}{kept}"
    if plan.rewrites:
        yield f"rewrites of the target: {', '.join(plan.rewrites)}"
    for name, sizes in plan.profile.items():
        yield f"engines are built for {name} from {sizes[0]} to {sizes[2]}, best at {sizes[1]}"


def _structure(plan: Plan) -> Iterator[str]:
    if plan.restore is not None:
        yield "quantized operators become float ones again"
    if plan.clean is not None:
        relaxed = f", not exactly at {_names(plan.clean.relaxed)}" if plan.clean.relaxed else ""
        yield f"the graph is cleaned up: {', '.join(plan.clean.changes) or 'no change'}{relaxed}"
    if plan.remove:
        removed = (f"{b.name} ({b.kind})" if b.kind else b.name for b in plan.remove)
        instead: Counter[str] = Counter(b.compensate for b in plan.remove)
        yield (
            f"{len(plan.remove)} branches are removed: {_names(removed)}; "
            f"in their place: {_counts(instead)}"
        )
    if plan.parallel:
        pairs = (f"{pair.first} and {pair.second}" for pair in plan.parallel)
        yield f"{len(plan.parallel)} pairs of branches become parallel: {_names(pairs)}"
    if plan.slice:
        yield f"streams are narrowed: {_names(f'{s.group} to {s.width}' for s in plan.slice)}"
    if plan.prune is not None:
        groups = channels_by_group(plan)
        counts = _names(f"{group} {len(gone)}" for group, gone in groups.items())
        inputs = f", on {'random' if plan.prune.calibration == 'random' else 'the given'} inputs"
        yield (
            f"{len(plan.prune.units)} channels of {len(groups)} groups are removed: {counts}; "
            f"compensation: {plan.prune.compensate}"
            f"{inputs if plan.prune.compensate != 'none' else ''}"
        )


def _sites_by_format(plan: Plan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, entry in plan.quantize.items():
        found.setdefault(entry_text(entry), []).append(name)
    return found


def _reasons(title: str, reasons: Mapping[str, str]) -> list[str]:
    if not reasons:
        return []
    return [title, *(f"  {name}: {why}" if why else f"  {name}" for name, why in reasons.items())]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _names(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(known[:_NAMED]) + more
