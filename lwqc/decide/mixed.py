"""Mixed formats under a budget: error curves per site and an exact knapsack."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from lwqc.compile.candidates import Candidate, with_formats
from lwqc.compile.stored_sites import storable, unquantized_bytes
from lwqc.compile.timing import slow_products
from lwqc.compile.version import Version
from lwqc.decide.allocators.knapsack import Option, cheapest, choose
from lwqc.decide.scores.curvature import curved_sensitivity
from lwqc.decide.scores.sensitivity import site_sensitivity
from lwqc.errors import InputError
from lwqc.graph.sites import MIN_WEIGHTS, Site
from lwqc.model import io
from lwqc.plans.plan import Plan, SiteEntry, Source
from lwqc.quant.fitted_codebook import CODEBOOK_METHODS
from lwqc.quant.formats import WeightFormat
from lwqc.quant.methods import DATA_METHODS, Method
from lwqc.quant.output_error import output_error
from lwqc.runtime.session import Session

Score = Literal["measured", "weights"]
SiteErrors = dict[tuple[str, ...], float]  # at the model's outputs, by the sites that are changed
PROBE = SiteEntry(weight=WeightFormat(4, 32))
_MEASURE_UP_TO_BYTES = 1_500_000_000  # weights are inputs of the trial session
_SITE_ERRORS = "errors with sites in"  # layout of the probe, runs
_ROUNDS = 8
_EXACT = 1e-9  # a probe with less error says nothing about the site


@dataclass(frozen=True)
class Choice:
    """A site with its legal entries (None: stay float), bytes and predicted error of each.

    own: relative squared error of each entry at the site's own output. factor: error at the model's
    outputs over that. gains: error of an entry's method over that of rounding to nearest.
    """

    site: Site
    entries: tuple[SiteEntry | None, ...]
    options: tuple[Option, ...]
    own: tuple[float, ...]
    factor: float = 1.0
    gains: tuple[float, ...] = ()


def choices(
    work: Version,
    score: Score = "measured",
    method: Method = "rtn",
    *,
    tiny: bool = False,
    unpack: bool = True,
) -> list[Choice]:
    """Error curves of all sites.

    The error of an entry is tr(E H Eᵀ), the squared error at the site's own output (without data
    |E|²), scaled so that the probe format has the error at the model's outputs that was measured
    for the site alone (or its share of the energy when measuring is off): relative squared errors,
    which add up while they are small.

    method: of entries below 8 bits where the site's input can be observed. tiny: 2 bits too.
    unpack: weights whose low-bit kernel is slow become float at load, by nodes that take bytes.
    """
    sites = [s for s in work.analysis.sites if s.size >= MIN_WEIGHTS]
    curves = {
        s.name: with_method(work, s, legal_entries(work, s, tiny, unpack), method) for s in sites
    }
    return error_curves(work, curves, score)


def error_curves(
    work: Version,
    curves: Mapping[str, Sequence[SiteEntry | None]],
    score: Score = "measured",
    probe: SiteEntry = PROBE,
    runs: int | None = None,
) -> list[Choice]:
    """The same for given entries of each site.

    probe: what the error at the model's outputs is measured with; where it is far from the entries,
    what they cost is told less well. runs: about how many that may take, None for all of the search
    batches for each site.
    """
    report = work.job.report("error curves")
    weight_errors: dict[str, tuple[list[float], float, list[float]]] = {}
    for name, entries in curves.items():
        weight_errors[name] = (
            _errors(work, name, entries, probe) if len(entries) > 1 else ([0.0], 0.0, [1.0])
        )
        report(len(weight_errors), len(curves))
    if score == "measured" and io.weight_bytes(work.model) <= _MEASURE_UP_TO_BYTES:
        probed = _measured(
            work, [n for n, entries in curves.items() if len(entries) > 1], probe, runs
        )
    else:
        probed = {}
    factors = {
        name: probed.get(name, own) / own
        for name, (_, own, _) in weight_errors.items()
        if own > _EXACT
    }
    # A weight that is exact in the probe's format shows nothing: it counts like the others.
    usual = statistics.median(factors.values()) if factors else 1.0
    found = []
    sites = work.sites
    for site in (sites[name] for name in curves):
        relative, _, gains = weight_errors[site.name]
        factor = factors.get(site.name, usual)
        options = [
            Option(cost=stored_bytes(work, site, entry), error=error * factor)
            for entry, error in zip(curves[site.name], relative, strict=True)
        ]
        entries, own = tuple(curves[site.name]), tuple(relative)
        found.append(Choice(site, entries, tuple(options), own, factor, tuple(gains)))
    return found


def legal_entries(
    work: Version, site: Site, tiny: bool = False, unpack: bool = True
) -> list[SiteEntry]:
    """Legal entries that the weight's values allow, unpacked at load where that is faster."""
    slow = slow_products(work) if unpack else {}
    found = []
    for entry in work.job.target.candidates(site, work.opset, tiny=tiny):
        if work.is_large and entry.weight.only_stored:
            continue  # the memory that floats take counts more than the file
        if site.name in slow.get(entry.weight.bits, ()) and not entry.weight.only_stored:
            entry = entry.model_copy(update={"activation": "none", "unpacked": True})
        stored = storable(work, site.name, entry)
        if isinstance(stored, SiteEntry):
            found.append(stored)
    return found


def _why_float(work: Version, site: Site) -> str:
    if legal_entries(work, site):
        return "the budget allows float"
    refusal = storable(work, site.name, PROBE)
    return refusal if isinstance(refusal, str) else "no legal format is smaller"


def stored_bytes(work: Version, site: Site, entry: SiteEntry | None) -> int:
    """Bytes of a site's weight in an entry, or as it is."""
    if entry is None:
        return unquantized_bytes(work, site)
    return entry.weight.size_bytes(site.n, site.k)


def with_method(
    work: Version, site: Site, legal: Sequence[SiteEntry], method: Method
) -> list[SiteEntry | None]:
    """Float, then the legal entries, with the method where it can help."""
    helped = method not in DATA_METHODS or not work.grams.reason(site.name)
    return [
        None,
        *(
            e.model_copy(update={"method": method}) if helped and _takes(e.weight, method) else e
            for e in legal
        ),
    ]


def _takes(fmt: WeightFormat, method: Method) -> bool:
    """Whether a method can be had and is of use: scalars of 8 bits are nearly exact."""
    return method in CODEBOOK_METHODS if fmt.kind == "vq" else fmt.bits < 8


def _errors(
    work: Version, name: str, entries: Sequence[SiteEntry | None], probe: SiteEntry
) -> tuple[list[float], float, list[float]]:
    """Relative squared error at the site's output, per entry and for the probe; gains per entry.

    What a method gains over rounding to nearest is looked at once per number of bits, and once for
    all codebooks, for which it is about the same.
    """
    weight = np.asarray(work.weights.weight(name), np.float32)
    observed = work.job.data.fit.kind == "real" and not work.grams.reason(name)
    gram = work.grams(name) if observed else None
    gains: dict[str, float] = {}

    def error(entry: SiteEntry) -> float:
        return output_error(weight, work.weights.get(name, entry).decode(), gram)

    def gain(entry: SiteEntry) -> float:
        fmt = entry.weight
        kind = fmt.kind if fmt.kind == "vq" else f"{fmt.kind}{fmt.bits}"
        if kind not in gains:
            plain = error(entry.model_copy(update={"method": "rtn"}))
            gains[kind] = error(entry) / plain if plain > 0 else 1.0
        return gains[kind]

    gained = [1.0 if e is None or e.method == "rtn" else gain(e) for e in entries]
    plain = [0.0 if e is None else error(e.model_copy(update={"method": "rtn"})) for e in entries]
    found = [g * p for g, p in zip(gained, plain, strict=True)]
    return found, error(probe), gained


def _measured(
    work: Version, names: Sequence[str], probe: SiteEntry, runs: int | None
) -> dict[str, float]:
    found = measured_together(work, [(name,) for name in names], probe, runs)
    return {name: found[(name,)] for name in names}


def measured_together(
    work: Version,
    trials: Sequence[tuple[str, ...]],
    probe: SiteEntry = PROBE,
    runs: int | None = None,
) -> dict[tuple[str, ...], float]:
    """Relative squared error at the outputs with some sites in the probe format, by trial."""
    asked = work.facts.get(_SITE_ERRORS, dict[tuple[str, int | None], SiteErrors])
    known = asked.setdefault((probe.layout, runs), {})
    new = [trial for trial in trials if trial not in known]
    if new:
        known |= site_sensitivity(
            work.model,
            new,
            lambda name: work.weights.get(name, probe).decode(),
            work.job.data.judge[: None if runs is None else max(1, runs // len(new))],
            lambda model: Session(model, label="sensitivity"),
            io.read_array,
            work.job.report("sensitivity"),
            work.job.weights,
        )
    return {trial: known[trial] for trial in trials}


def known_sensitivities(work: Version) -> tuple[str, dict[str, float]]:
    """The format that most single sites were measured in, and by site the error at the outputs.

    Of what decisions asked for; nothing is measured for it, and it may be empty.
    """
    asked = work.facts.get(_SITE_ERRORS, dict[tuple[str, int | None], SiteErrors])
    alone = [
        (layout, {trial[0]: error for trial, error in found.items() if len(trial) == 1})
        for (layout, _), found in asked.items()
    ]
    return max(alone, key=lambda one: len(one[1]), default=("", {}))


def within_bytes(work: Version, curves: Sequence[Choice], budget: float, recipe: str) -> Plan:
    """The plan of least predicted error whose saved size is at most `budget` bytes.

    When no plan is that small, the smallest one. The graph grows a little with every rewritten
    site; that is part of an option's cost, and what is left of it is corrected by the real size.
    """
    plan = smallest(work, curves, recipe)
    rest = _overhead(work)
    grown = io.serialized_bytes(with_formats(work, plan).model) - rest - _cost_of(work, plan)
    per_site = max(grown, 0) / max(len(plan.quantize), 1)
    options = [
        [
            replace(o, cost=o.cost + (per_site if e else 0))
            for e, o in zip(c.entries, c.options, strict=True)
        ]
        for c in curves
    ]
    limit, fits, fails = budget - rest, -math.inf, math.inf
    for _ in range(_ROUNDS):
        picked = choose(options, limit)
        if picked is None:
            break
        attempt = _plan(work, curves, picked, recipe)
        room = budget - io.serialized_bytes(with_formats(work, attempt).model)
        cost = sum(o[i].cost for o, i in zip(options, picked, strict=True))
        if room >= 0:
            plan, fits = attempt, max(fits, limit)
        else:
            fails = min(fails, cost)
        # What this one left, or took too much, belongs to the next; else in the middle.
        limit = cost + room
        if not fits < limit < fails:
            limit = (fits + fails) / 2
        if not fits < limit < fails:
            break
    return plan


def _cost_of(work: Version, plan: Plan) -> int:
    """Bytes of all sites' weights under a plan, small sites aside."""
    return sum(
        stored_bytes(work, s, plan.quantize.get(s.name))
        for s in work.analysis.sites
        if s.size >= MIN_WEIGHTS
    )


def within_average_bits(work: Version, curves: Sequence[Choice], bits: float, recipe: str) -> Plan:
    """The plan of least predicted error with at most `bits` stored bits per weight of all sites.

    Bits count scales and zero points. The smallest plan when none is that small.
    """
    small = sum(s.float_bytes for s in work.analysis.sites if s.size < MIN_WEIGHTS)
    budget = bits / 8 * sum(s.size for s in work.analysis.sites) - small
    picked = choose([c.options for c in curves], budget)
    if picked is None:
        return smallest(work, curves, recipe)
    return _plan(work, curves, picked, recipe)


def within_drop(
    work: Version,
    curves: Sequence[Choice],
    evaluate: Callable[[Plan], Candidate],
    max_drop: float,
    recipe: str,
) -> Candidate:
    """The smallest plan whose measured drop is at most `max_drop`, by bisection.

    The predicted error orders the plans; the measured drop decides. Falls back to all float.
    """
    best = evaluate(_plan(work, curves, [0] * len(curves), recipe))
    highest = sum(max(o.error for o in c.options) for c in curves)
    low, high = -8.0, float(np.log10(max(highest, 1e-7)))
    for _ in range(8):
        middle = (low + high) / 2
        picked = cheapest([c.options for c in curves], 10**middle)
        candidate = evaluate(_plan(work, curves, picked or [0] * len(curves), recipe))
        if candidate.drop <= max_drop:
            best = min(best, candidate, key=lambda c: c.size_bytes)
            low = middle
        else:
            high = middle
    return best


def bytes_at(work: Version, bits: float) -> float:
    """Bytes of the model at an average number of stored bits per weight of all sites."""
    small = sum(s.float_bytes for s in work.analysis.sites if s.size < MIN_WEIGHTS)
    weights = sum(s.size for s in work.analysis.sites)
    return _overhead(work) - small + bits / 8 * weights


def fitting_forms(work: Version, budget: float) -> dict[str, bool]:
    """Options of `choices` that are needed to fit: fast forms before small ones, 2 bits last."""
    for unpack in (True, False):
        if least_bytes(work, tiny=False, unpack=unpack) <= budget:
            return {"tiny": False, "unpack": unpack}
    return {"tiny": True, "unpack": False}


def least_bytes(work: Version, *, tiny: bool, unpack: bool) -> int:
    """Bytes of the model with every site in its smallest format, rounded to nearest."""
    picked = _smallest_entries(work, tiny, unpack)
    return io.serialized_bytes(with_formats(work, plan_of(work, picked, "")).model)


def _smallest_entries(work: Version, tiny: bool, unpack: bool) -> dict[str, SiteEntry | None]:
    return {
        site.name: min(
            legal_entries(work, site, tiny, unpack),
            key=lambda e, s=site: e.size_bytes(s.n, s.k),  # type: ignore[misc]
            default=None,
        )
        for site in work.analysis.sites
        if site.size >= MIN_WEIGHTS
    }


def least_average_bits(work: Version) -> float:
    """Stored bits per weight of all sites when each takes its smallest format but 2 bits."""
    picked = _smallest_entries(work, tiny=False, unpack=False)
    least = sum(
        stored_bytes(work, s, picked[s.name]) if s.name in picked else s.float_bytes
        for s in work.analysis.sites
    )
    return 8 * least / max(sum(s.size for s in work.analysis.sites), 1)


def smallest(work: Version, curves: Sequence[Choice], recipe: str) -> Plan:
    """Every site in its smallest format."""
    picked = [min(range(len(c.options)), key=lambda i: c.options[i].cost) for c in curves]
    return _plan(work, curves, picked, recipe)


def augmented_sensitivity(work: Version) -> tuple[dict[str, float], str]:
    """Error of each site in the probe format, plus what it adds beside others; and how it is told.

    Ω_i = L(i) + Σ_j (L(i, j) - L(i) - L(j)) / 2 (2306.04879): over all sites by a product with the
    Hessian, where torch is there and knows the model's gradients.
    """
    names = [s.name for s in work.analysis.sites if s.size >= MIN_WEIGHTS]
    try:
        found = curved_sensitivity(
            work.model,
            names,
            lambda name: work.weights.get(name, PROBE).decode(),
            work.job.data.judge,
            io.read_array,
            work.job.report("sensitivity"),
            work.job.weights,
        )
    except InputError as error:
        return _beside_neighbours(work, names), f"sensitivity by differences: {error}"
    return found, "sensitivity by a product with the Hessian"


def _beside_neighbours(work: Version, names: Sequence[str]) -> dict[str, float]:
    """The same over the sites next to each in graph order, by finite differences (2307.05657)."""
    pairs = list(pairwise(names))
    found = measured_together(work, [*((name,) for name in names), *pairs])
    result = {name: found[(name,)] for name in names}
    for a, b in pairs:
        together = (found[(a, b)] - found[(a,)] - found[(b,)]) / 2
        result[a] += together
        result[b] += together
    return result


def _plan(work: Version, curves: Sequence[Choice], picked: Sequence[int], recipe: str) -> Plan:
    return plan_of(
        work,
        {c.site.name: c.entries[i] for c, i in zip(curves, picked, strict=True)},
        recipe,
    )


def plan_of(work: Version, picked: Mapping[str, SiteEntry | None], recipe: str) -> Plan:
    """The plan with these entries by site; why the others stay float."""
    kept = {}
    for site in work.analysis.sites:
        if site.size < MIN_WEIGHTS:
            kept[site.name] = f"has only {site.size} weights"
        elif picked.get(site.name) is None:
            kept[site.name] = _why_float(work, site)
    return Plan(
        source=Source(name=work.name),
        target=work.job.target.name,
        recipe=recipe,
        quantize={n: e for n, e in picked.items() if e is not None},
        rewrites=work.job.target.rewrites,
        kept_float=kept,
    )


def _overhead(work: Version) -> int:
    """Bytes of the model that no choice changes."""
    chosen = (s for s in work.analysis.sites if s.size >= MIN_WEIGHTS)
    total = io.serialized_bytes(work.model) - sum(s.float_bytes for s in chosen)
    if total < 0:
        raise InputError("weights are shared in a way that the size model does not cover")
    return total
