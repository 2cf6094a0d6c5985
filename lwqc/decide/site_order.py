"""Which sites cost most in 8 bits: the order in which they go back to float."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

from lwqc.compile.losses import compared
from lwqc.compile.version import Version
from lwqc.graph.integer_flow import integer_flow
from lwqc.passes.gate_activations import GateActivations
from lwqc.passes.gate_tensors import GateTensors
from lwqc.plans.plan import Plan
from lwqc.quant.activation import activation_grid
from lwqc.runtime.measure import worst_drop
from lwqc.runtime.session import Session, statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.rounding_noise import RoundingNoise

_MOST_TRIALS = 64
Cost = Callable[[Sequence[str]], float]
_MARGIN = 1.5  # times the drop that has to go: drops of sites add up only roughly


@dataclass(frozen=True)
class SiteOrder:
    """Sites, the worst first. rounded: what some of them cost together in 8 bits, if known."""

    sites: Sequence[str]
    rounded: Cost | None = None

    def expected(self, limit: float) -> int:
        """How many of the worst have to go, at least 1, until the others cost no more than that.

        Half of them where that is not known.
        """
        middle, rounded = (len(self.sites) + 1) // 2, self.rounded
        if rounded is None:
            return middle
        return smallest(
            1, len(self.sites), middle, lambda count: rounded(self.sites[count:]) <= limit
        )


def smallest(low: int, high: int, guess: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from low to high that holds, if all above one that does hold too.

    `high` is known to. Asks at the guess first and goes away from it in growing steps.
    """
    step, seen = 1, set[bool]()
    while low < high:
        at = (low + high) // 2 if len(seen) == 2 else min(max(guess, low), high - 1)
        found = holds(at)
        seen.add(found)
        low, high = (low, at) if found else (at + 1, high)
        guess, step = at - step if found else at + step, 2 * step
    return low


def by_activation_error(work: Version, plan: Plan, sites: Collection[str]) -> list[str]:
    """The sites in order of what 8 bits cost their activation, the worst first.

    Before them those whose activations cannot be observed, in bodies.
    """
    hidden = sorted(name for name in sites if work.sites[name].in_body)
    seen = [name for name in sites if not work.sites[name].in_body]
    activation = {name: work.sites[name].uses[0].activation for name in seen}
    names = {n: v.name or "" for n, v in activation.items() if v is not None}
    wanted = [RoundingNoise(name) for name in sorted(set(names.values()))]
    noise = collect(work.model, wanted, work.job.data.judge, statistics_session)
    costs = {n: noise[RoundingNoise(names[n])].relative for n in names}
    return [*hidden, *sorted(names, key=lambda n: (-costs[n], n))]


def by_output_error(
    work: Version, plan: Plan, sites: Collection[str], excess: float = math.inf
) -> SiteOrder:
    """The sites in order of what each of them alone costs in the plan's format, the worst first.

    excess: the drop that has to go. Sites are tried in groups, and one by one in the groups that
    cost most, until those found cost more than that; the order of the others is rough.
    Where the loss is a metric of the caller's, whose steps are coarse, or the model is large, the
    order is that of what 8 bits cost their activation.
    """
    rough = by_activation_error(work, plan, sites)
    if work.job.metric is not None or work.is_large:
        return SiteOrder(rough)
    report = work.job.report("sites alone")
    trials = count(1)
    alone = _rounded_alone(work, plan, sites)

    def cost(group: Sequence[str]) -> float:
        report(min(next(trials), len(sites)), len(sites))
        return alone(group)

    return SiteOrder(_worst_first(rough, cost, excess * _MARGIN), alone)


def _rounded_alone(work: Version, plan: Plan, sites: Collection[str]) -> Cost:
    """What the outputs lose where only the activations of some sites are rounded to 8 bits.

    One session tells it for any of them: what they round is behind gates. Tensors that static
    convolutions bring to 8 bits are rounded to the plan's grids, other inputs as in each run. What
    was told for one plan is known for others that round the same.
    """
    graph = work.model.graph
    convs = {n for n in sites if work.sites[n].op == "Conv" and n in plan.quantize}
    convs = {n for n in convs if plan.quantize[n].activation == "static"}

    def flow(group: Iterable[str]) -> Mapping[str, str]:
        return integer_flow(graph, [work.sites[n] for n in group if n in convs]).tensors

    ranges = plan.ranges
    grids = {
        tensor: activation_grid(ranges[owner].low, ranges[owner].high)
        for tensor, owner in flow(sites).items()
        if owner in ranges
    }
    tensors, inputs = GateTensors(grids), GateActivations(n for n in sites if n not in convs)

    @cache
    def session() -> Session:
        model = work.model.clone()
        tensors(model)
        inputs(model)
        return statistics_session(model)

    def measured(group: Sequence[str], rounded: Iterable[str]) -> float:
        run = session()
        gates = {**tensors.feeds(rounded), **inputs.feeds(group)}
        found = compared(work, lambda feeds: run({**feeds, **gates}))
        return worst_drop(found.result(), work.job.weights)

    def lost(group: Sequence[str]) -> float:
        rounded = flow(group)
        on_grids = frozenset((name, grids[name]) for name in rounded if name in grids)
        others = frozenset(name for name in group if name not in convs)
        question = "rounded alone", on_grids, others
        return work.facts.get(question, lambda: measured(group, rounded))

    return lost


def _worst_first(sites: Sequence[str], cost: Cost, enough: float) -> list[str]:
    """Sites by what they cost alone, until those found together cost enough; then the others.

    sites: in rough order. A group costs at least what each of its sites does, but for noise, so
    that the costliest site is in the costliest group.
    """
    size = max(1, math.isqrt(len(sites)))
    groups = [sites[i : i + size] for i in range(0, len(sites), size)]
    waiting: list[tuple[float, float, Sequence[str]]]
    waiting = [(-cost(g), i, g) for i, g in enumerate(groups)]
    left, order = _MOST_TRIALS - len(groups), list[str]()
    heapq.heapify(waiting)
    while waiting and enough > 0:
        found, place, group = waiting[0]
        if len(group) > 1 and len(group) > left:
            break
        heapq.heappop(waiting)
        if len(group) == 1:
            order += group
            enough += found if math.isfinite(found) else 0.0
            continue
        left -= len(group)
        for i, site in enumerate(group):
            heapq.heappush(waiting, (-cost([site]), place + i / len(group), [site]))
    rest = sorted(waiting, key=lambda w: (w[0] / len(w[2]), w[1]))
    return [*order, *(site for _, _, group in rest for site in group)]
