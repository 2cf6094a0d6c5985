"""Plans that treat all sites alike: the legal form of each site closest to what was asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Literal

from lwqc.backends.target import Lowered
from lwqc.compile.activation_facts import activation_ranges
from lwqc.compile.candidates import Candidate, measured, with_formats
from lwqc.compile.stored_sites import storable
from lwqc.compile.version import Version
from lwqc.errors import InputError
from lwqc.graph.sites import MIN_WEIGHTS, Site
from lwqc.plans.plan import ActivationRange, Plan, SiteEntry, Source
from lwqc.plans.recipe import Recipe
from lwqc.quant.formats import BLOCKS, DIMS, Kind, WeightFormat
from lwqc.quant.methods import DATA_METHODS, Method
from lwqc.runtime.session import Session, read_back, statistics_session
from lwqc.runtime.stats.ranges import ranges

_LEAST, _SHARE = 256, 1000  # weights, and part of all of them, that are worth fewer bits in a file
_FINER = 1.07  # times the bytes of a scale per channel that scales per block may take
_FEWEST_BLOCKS = 3
Activations = Literal["none", "dynamic", "static"]
RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]


def uniform(
    work: Version,
    bits: int,
    activations: Activations,
    *,
    block: int | None = None,
    symmetric: bool = True,
    search: bool = True,
    kind: Kind = "int",
    fmt: WeightFormat | None = None,
    recipe: str = "",
) -> Plan:
    """Every site in `bits`, with the given activations where the target has a kernel for it.

    block: scales per block of a weight-only matrix (None: 32 for up to 4 bits, 128 for 8, or
    fewer where that pads less).
    search: choose scales by error search. kind: of 4-bit floats, where they have a kernel; the
    other sites get integers. fmt: of all, instead of `bits` and `kind`, in other blocks or shorter
    vectors where it cannot be had as it is.
    Sites that cannot take the format are in `kept_float` with the reason. Static plans have no
    ranges yet; see `calibrate`.
    """
    chosen: dict[str, SiteEntry] = {}
    kept: dict[str, str] = {}
    barred = _refused_sites(work) if activations == "static" else {}
    for site in work.analysis.sites:
        wishes = list(
            _like_grained(work, site, fmt, activations) if fmt.grained else _like(fmt)
        ) if fmt is not None else [
            *_float_wishes(kind, block),
            # Integers beside float8 would have to share its pairs of activations.
            *(_wishes(site, bits, activations, block, symmetric, work.job.target.integer_bits)
              if kind != "fp8" else ()),
        ]  # fmt: skip
        barrier = f"its {site.op}: {barred[site.name]}" if site.name in barred else ""
        found = _first_legal(work, site, wishes, barrier)
        if isinstance(found, str):
            kept[site.name] = found
            continue
        entry, refusal = found
        chosen[site.name] = entry.model_copy(update={"search": search})
        less = _less(wishes[0], entry)
        if less:
            kept[site.name] = f"{less}: {refusal}"
    return Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe=recipe,
        quantize=chosen,
        rewrites=work.job.target.rewrites,
        kept_float=kept,
    )


def _refused_sites(work: Version) -> dict[str, str]:
    return work.job.target.flow(work.model.graph, work.analysis.sites).refused


def _like_grained(
    work: Version, site: Site, fmt: WeightFormat, activations: Activations
) -> Iterator[SiteEntry]:
    """A grained format in the bits that the target multiplies, and integers that are near to it."""
    bits = work.job.target.integer_bits
    fmt = fmt if bits == 8 else replace(fmt, product=bits)
    for block in _nearest_blocks(fmt.fitted(site.n, site.k).block or 32):
        yield SiteEntry(weight=replace(fmt, block=block), activation=activations)
    yield from _wishes(site, fmt.bits, activations, None, True, bits)


def _like(fmt: WeightFormat) -> Iterator[SiteEntry]:
    """A format, and what is nearest to it."""
    yield SiteEntry(weight=fmt)
    if fmt.kind == "vq":
        for dim in (d for d in reversed(DIMS) if d < fmt.dim):
            bits = min(-(-fmt.bits * dim // fmt.dim), 8)
            yield SiteEntry(weight=replace(fmt, bits=bits, dim=dim))
    elif fmt.block is not None:
        for block in _nearest_blocks(fmt.block)[1:]:
            yield SiteEntry(weight=replace(fmt, block=block))


def _float_wishes(kind: Kind, block: int | None) -> Iterator[SiteEntry]:
    if kind == "fp8":
        yield SiteEntry(weight=WeightFormat(8, None, True, "float32", "fp8"), activation="static")
        return
    for size in _nearest_blocks(block or 64) if kind != "int" else ():
        yield SiteEntry(weight=WeightFormat(4, size, True, "float16", kind))


def _nearest_blocks(first: int) -> list[int]:
    return sorted(BLOCKS, key=lambda b: (b != first, abs(b - first)))


def _wishes(
    site: Site,
    bits: int,
    activations: Activations,
    block: int | None,
    symmetric: bool,
    integer_bits: int,
) -> Iterator[SiteEntry]:
    """Entries for a site, the closest to the request first."""
    linear = site.ops <= {"MatMul", "Gemm"}
    ranged_in_runs = linear or site.ops == {"LSTM"}  # where an 8-bit kernel finds ranges itself
    if activations != "none":
        weight = WeightFormat(integer_bits if bits == 8 else bits)
        yield SiteEntry(weight=weight, activation=activations)
        if bits == 8 and activations == "static" and ranged_in_runs:
            yield SiteEntry(weight=weight, activation="dynamic")
    if site.ops <= {"MatMul", "Gemm", "Gather"}:
        weight_only: Activations = "dynamic" if activations == "dynamic" and linear else "none"
        usual = WeightFormat(bits, 128 if bits == 8 else 32, symmetric, "float16")
        first = block or usual.fitted(site.n, site.k).block or 32
        for size in _nearest_blocks(first):
            fmt = WeightFormat(bits, size, symmetric, "float16")
            yield SiteEntry(weight=fmt, activation=weight_only)
            if weight_only != "none":
                yield SiteEntry(weight=fmt)
            if symmetric and bits < 8:
                yield SiteEntry(weight=replace(fmt, positive=True))
    if bits == 8:
        yield SiteEntry(weight=WeightFormat(8))
    else:
        yield SiteEntry(weight=WeightFormat(bits, block or 32, symmetric, "float16"))


def _less(asked: SiteEntry, entry: SiteEntry) -> str:
    """What an entry is where it is less than what was asked for, or ""."""
    if entry.activation != asked.activation:
        return "weight only" if entry.activation == "none" else "dynamic activations"
    return "integers" if entry.weight.kind != asked.weight.kind else ""


def _first_legal(
    work: Version, site: Site, wishes: Iterable[SiteEntry], barrier: str = ""
) -> tuple[SiteEntry, str] | str:
    """The first wish that the target has, with why it has not the first of all; or why it has none.

    barrier: why the site cannot have static activations.
    """
    first = last = ""
    quantizes = False  # the activation of what was asked for first
    for asked in wishes:
        quantizes = quantizes or asked.activation != "none"
        wish = storable(work, site.name, asked)
        if isinstance(wish, str):
            return wish
        last = _refusal(work, site, wish, barrier)
        if not last:
            return wish, first
        first = first or last
        if wish.activation == "none" and site.size < _least(work):
            break
    return f"{first}; {last}" if quantizes and first != last else last or "no format was asked for"


def _refusal(work: Version, site: Site, wish: SiteEntry, barrier: str) -> str:
    """Why the target does not have a wish, or it is of no use; "" otherwise."""
    small = wish.activation == "none" and site.size < MIN_WEIGHTS
    few = f"has only {site.size} weights"
    if small and site.size < _least(work):
        return few
    form = work.job.target.form(site, wish, work.opset)
    if work.job.target.refuses(form):
        return form
    if small and form != "Folded":
        return few
    if wish.activation == "static":
        return barrier
    smaller = wish.weight.size_bytes(site.n, site.k) < site.float_bytes
    return "" if smaller or wish.activation != "none" else f"{wish.weight} would not be smaller"


def _least(work: Version) -> int:
    """Weights below which fewer bits in the file save next to nothing of it."""
    share = sum(s.size for s in work.analysis.sites) // _SHARE
    return max(_LEAST, min(share, MIN_WEIGHTS))


def finer(work: Version, plan: Plan) -> Plan:
    """The plan with scales per block of inputs where 8-bit weights are only stored.

    A block has a narrower range than a channel: for a few percent more bytes the error is several
    times less. Where one scale per channel is about as fine, it stays.
    """
    entries, sites = {}, work.sites
    for name, entry in plan.quantize.items():
        site = sites[name]
        if entry.weight != WeightFormat(8) or entry.activation != "none" or entry.has_side:
            continue
        plain = site.size + 4 * site.n
        formats = (WeightFormat(8, block, True, "float16") for block in BLOCKS)
        fmt = next((f for f in formats if f.size_bytes(site.n, site.k) <= _FINER * plain), None)
        if fmt is None or fmt.blocks(site.k) < _FEWEST_BLOCKS:
            continue
        asked = entry.model_copy(update={"weight": fmt, "unpacked": True})
        wish = storable(work, name, asked)
        if isinstance(wish, SiteEntry) and work.job.target.form(site, wish, work.opset) == "Folded":
            entries[name] = wish
    return plan.model_copy(update={"quantize": {**plan.quantize, **entries}})


def calibrate(work: Version, plan: Plan, method: RangeMethod) -> Plan:
    """Add the activation ranges that the plan's static sites need, measured on the data."""
    owners = static_tensors(work, plan)
    if not owners:
        return plan
    work.job.whole("measuring ranges of activations")
    known_ranges = activation_ranges(work)
    missing = sorted(o for o in set(owners.values()) if (method, o) not in known_ranges)
    measured = ranges(work.model, missing, work.job.data.fit, statistics_session, method)
    known_ranges.update({(method, owner): found for owner, found in measured.items()})
    found = {
        name: ActivationRange(low=known.low, high=known.high)
        for name, owner in owners.items()
        for known in [known_ranges[method, owner]]
    }
    return plan.model_copy(update={"activations": found})


def static_tensors(work: Version, plan: Plan) -> dict[str, str]:
    """Tensors that static sites quantize, and the tensor whose range each takes."""
    static = [
        s
        for n, s in work.sites.items()
        if n in plan.quantize and plan.quantize[n].activation == "static"
    ]
    return dict(work.job.target.flow(work.model.graph, static).tensors)


def weight_only(work: Version, plan: Plan, sites: Iterable[str]) -> Plan:
    """The plan with float activations at the given sites, their weights unpacked at load.

    In models of more than a gigabyte they keep the format that a product reads, in blocks.
    """
    entries, kept = dict(plan.quantize), dict(plan.kept_float)
    unpacked = [] if work.is_large else [SiteEntry(weight=WeightFormat(8))]
    for name in sites:
        site = work.sites[name]
        wishes = chain(unpacked, _wishes(site, 8, "none", None, True, 8))
        found = _first_legal(work, site, wishes)
        if isinstance(found, str):
            del entries[name]
            kept[name] = found
        else:
            entries[name] = found[0].model_copy(update={"method": entries[name].method})
            kept[name] = "weight only: 8-bit activations cost too much accuracy here"
    changed = plan.model_copy(update={"quantize": entries, "kept_float": kept})
    needed = static_tensors(work, changed)
    ranges = {n: r for n, r in plan.activations.items() if n in needed}
    return changed.model_copy(update={"activations": ranges})


def folded(work: Version, recipe: str) -> Plan:
    """8-bit weights in the file, float kernels at run time, for every site."""
    entry = SiteEntry(weight=WeightFormat(8))
    found = {s.name: _first_legal(work, s, [entry]) for s in work.analysis.sites}
    return Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe=recipe,
        quantize={n: f[0] for n, f in found.items() if not isinstance(f, str)},
        rewrites=work.job.target.rewrites,
        kept_float={n: f for n, f in found.items() if isinstance(f, str)},
    )


def unchanged(work: Version, recipe: str = "") -> Plan:
    """Nothing but the exact rewrites of the target."""
    return Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe=recipe,
        rewrites=work.job.target.rewrites,
    )


def repaired(work: Version, plan: Plan) -> Plan:
    """The plan without sites for which the runtime does not choose the expected kernel."""
    if not work.job.checked_whole:
        return plan
    later = plan.sequential or work.job.cluster  # kernels do not depend on which codes there are
    trial = nearest(plan) if later else plan
    wrong = work.job.target.misplaced(with_formats(work, trial))
    return without(plan, wrong) if wrong else plan


def proven(work: Version, plan: Plan) -> tuple[Candidate, Session] | None:
    """What `repaired` leaves of a plan, evaluated; None where that is nothing."""
    found = loaded(work, plan)
    return None if found is None else (measured(work, *found), found[2])


def loaded(work: Version, plan: Plan) -> tuple[Plan, Lowered, Session] | None:
    """What `repaired` leaves of a plan, with its formats and loaded; None where that is nothing.

    The session shows its kernels too, unless that is not asked for here, or what it shows is that
    another plan is needed.
    """
    shown = work.job.runs_here and work.job.target.read_as_run
    if work.job.skip_checks or plan.sequential or not shown:
        plan = repaired(work, plan)
    else:
        lowered = with_formats(work, plan)
        session, optimized = read_back(lowered.model, work.job.target.settings(), "candidate")
        wrong = work.job.target.misplaced(lowered, optimized)
        if not wrong:
            return plan, lowered, session
        plan = without(plan, wrong)
    if not plan.quantize:
        return None
    lowered = with_formats(work, plan)
    return plan, lowered, work.job.load(lowered.model)


def with_method(
    work: Version, plan: Plan, method: Method, sites: Collection[str] | None = None
) -> Plan:
    """The plan with codes chosen by `method` wherever the site's input can be observed.

    sites: only these; None for all.
    """
    if method == "rtn":
        return plan
    if method not in DATA_METHODS:
        alike = {
            n: e.model_copy(update={"method": method}) if sites is None or n in sites else e
            for n, e in plan.quantize.items()
        }
        return plan.model_copy(update={"quantize": alike})
    if not work.job.data.fit.given:
        raise InputError(f"method {method} looks at the data: give --data")
    entries, kept = dict(plan.quantize), dict(plan.kept_float)
    for name, entry in plan.quantize.items():
        if sites is not None and name not in sites:
            continue
        reason = work.grams.reason(name)
        if reason:
            kept.setdefault(name, f"round to nearest: {reason}")
        else:
            entries[name] = entry.model_copy(update={"method": method})
    if work.job.room is not None:  # which is refused here rather than on the way
        work.grams.in_parts(entries)
    return plan.model_copy(update={"quantize": entries, "kept_float": kept})


def with_side(work: Version, plan: Plan, rank: int, columns: float) -> Plan:
    """The plan with a branch in float beside every quantized weight that can have one.

    columns: a count, or below 1 a share of the inputs (at least one). The others stay as they are,
    with the reason in `kept_float`.
    """
    if not rank and not columns:
        return plan
    entries, kept = dict(plan.quantize), dict(plan.kept_float)
    sites = work.sites
    for name, entry in plan.quantize.items():
        site = sites[name]
        count = int(columns) if columns >= 1 or not columns else max(1, round(columns * site.k))
        wish = entry.model_copy(update={"rank": rank, "columns": count})
        form = work.job.target.form(site, wish, work.opset)
        if work.job.target.refuses(form):
            reason = f"no side branch: {form}"
        elif wish.size_bytes(site.n, site.k) >= site.float_bytes:
            reason = "no side branch: would not be smaller than float"
        else:
            entries[name] = wish
            continue
        kept[name] = f"{kept[name]}; {reason}" if name in kept else reason
    return plan.model_copy(update={"quantize": entries, "kept_float": kept})


def nearest(plan: Plan) -> Plan:
    """The plan with every weight rounded to nearest."""
    plain = {n: e.model_copy(update={"method": "rtn"}) for n, e in plan.quantize.items()}
    return plan.model_copy(update={"quantize": plain})


def without(plan: Plan, reasons: Mapping[str, str]) -> Plan:
    """The plan with some sites left float."""
    kept = {n: e for n, e in plan.quantize.items() if n not in reasons}
    return plan.model_copy(update={"quantize": kept, "kept_float": {**plan.kept_float, **reasons}})


def affordable(work: Version, recipe: Recipe) -> Method:
    """The recipe's method, or rounding to nearest where it would look at made-up data."""
    needs_data = recipe.method in DATA_METHODS and not work.job.data.fit.given
    return "rtn" if needs_data else recipe.method
