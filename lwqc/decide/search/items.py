"""From a model to what a search can choose: items with levels, and what each changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.compile.gated_model import GatedModel
from lwqc.compile.prunable import Prunable
from lwqc.compile.version import Version
from lwqc.decide import mixed, planning
from lwqc.decide.allocators.knapsack import Option, choose
from lwqc.decide.channel_ranking import rank
from lwqc.decide.drop_layers import gated_session
from lwqc.decide.prune_options import PruneOptions
from lwqc.decide.scores.branches.ablation import Ablation
from lwqc.decide.scores.channels.ranking import Normaliser
from lwqc.decide.scores.channels.score import channel_score
from lwqc.decide.search.shorter import Shorter
from lwqc.decide.search.space import (
    Item,
    SearchSpace,
    Stored,
    Written,
    flipped,
    widths,
)
from lwqc.decide.search.trial_model import Cut, Mask
from lwqc.decide.search.trial_spec import rounds_activation
from lwqc.decide.search.work_left import RunWork, tokens_left
from lwqc.graph.axes import Factor, positions
from lwqc.graph.branch_kinds import BranchTree, branch_tree, removed_nodes
from lwqc.graph.dataflow import Dataflow
from lwqc.graph.groups import Group
from lwqc.graph.sites import Site, find_sites
from lwqc.graph.widths import width_step
from lwqc.model import io
from lwqc.model.weights import static_shape, stored_float_tensors, stored_tensor
from lwqc.plans.plan import SiteEntry
from lwqc.quant.methods import Method
from lwqc.quant.output_error import output_error
from lwqc.runtime.session import statistics_session
from lwqc.runtime.stats.collect import collect
from lwqc.runtime.stats.rounding_noise import RoundingNoise

_LEAST_WIDTH = 0.125
_ROUND = (8, 4, 2, 1)
_KEEPS_CODES = frozenset(
    {"Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose"}
)
_PLAIN_STEPS = frozenset({"Transpose", "Identity"})


@dataclass(frozen=True)
class _Fixed:
    """A site that is not searched, and what it can have instead of float."""

    choice: mixed.Choice
    entries: list[SiteEntry]

    @property
    def widest(self) -> SiteEntry:
        """The format of most bits."""
        site = self.choice.site
        return max(self.entries, key=lambda e: (e.weight.bits, e.size_bytes(site.n, site.k)))

    def option(self, entry: SiteEntry) -> Option:
        """Its bytes, and its error at the site's own output; those with 8-bit activations last."""
        site, known = self.choice.site, dict(zip(self.choice.entries, self.choice.own, strict=True))
        return Option(entry.size_bytes(site.n, site.k), known.get(entry, math.inf))


class Builder:
    """Collects items kind by kind."""

    def __init__(self, work: Version, prunable: Prunable) -> None:
        self.work, self.prunable = work, prunable
        # What makes up for removed channels is fitted to data that candidates are not judged on.
        half = work.job.data.fit.halves()[0]
        self.fitted = work.grams_of(work.model, work.analysis.sites, half)
        self.items: list[Item] = []
        self.groups: dict[int, Group] = {}
        self.keeps: dict[int, tuple[Mask, ...]] = {}
        self.constant: dict[str, SiteEntry] = {}
        self.grams: dict[str, NDArray[np.float64]] = {}
        self.gains: dict[str, tuple[float, ...]] = {}
        self.left_out: dict[str, str] = {}
        self._entries: dict[str, tuple[int, tuple[SiteEntry | None, ...]]] = {}
        self._branches: dict[int, set[ir.Node]] = {}
        self._chained: list[str] = []
        self._fixed: list[_Fixed] = []
        self._shorter: list[Shorter] = []
        self._tokens = -1  # the item of that name
        self._integer: dict[str, list[SiteEntry]] = {}
        self.sites = {s.name: s for s in find_sites(prunable.model).sites}

    def formats(
        self, method: Method, *, tiny: bool, unpack: bool, small: bool, fast: bool, held: bool
    ) -> None:
        """One item per site with the formats that no other beats in cost and error."""
        integer = self._integer_entries() if fast else {}
        chained: list[tuple[str, SiteEntry, float]] = []
        # Too small for their bytes to matter; what they write may be the most that is in memory. In
        # 8 bits they are slower than in float: the first convolution reads too few channels.
        tiny_ones = dict(self._integer) if held else {}
        for choice in mixed.choices(self.work, "measured", method, tiny=tiny, unpack=unpack):
            name = choice.site.name
            tiny_ones.pop(name, None)
            whole = integer[name](choice) if name in integer else []
            if whole and not small and choice.site.op == "Conv" and _is_plain(self.sites[name]):
                chained += [(name, e, o.error) for e, o in whole if e is not None]
                continue
            offered: list[tuple[SiteEntry | None, Option]] = []
            for entry, option in zip(choice.entries, choice.options, strict=True):
                if small or entry is None or (held and self._is_held(choice.site, entry)):
                    offered.append((entry, option))
            low = [e for e, _ in (*offered, *whole) if e is not None]
            if reason := self._unsearched(self.sites.get(name), [o for _, o in (*offered, *whole)]):
                if low:
                    self.left_out[name] = reason
                    self._fixed.append(_Fixed(choice, low))
                continue
            if not fast:
                offered = [offered[i] for i in _undominated([o for _, o in offered])]
            self._offer(name, [*offered, *whole])
            gain = dict(zip(choice.entries, choice.gains, strict=True))
            if name in self._entries:
                self.gains[name] = tuple(gain.get(e, 1.0) for e in self._entries[name][1])
        if chained:
            for name, entries in tiny_ones.items():
                if self.sites[name].op == "Conv" and _is_plain(self.sites[name]):
                    chained.append((name, entries[0], 0.0))
            self._chain(chained)

    def _is_held(self, site: Site, entry: SiteEntry) -> bool:
        return self.work.job.target.form(site, entry, self.work.opset) != "Folded"

    def _offer(self, name: str, offered: list[tuple[SiteEntry | None, Option]]) -> None:
        offered.sort(key=lambda pair: (-pair[1].error, pair[1].cost))
        if len(offered) < 2:
            return
        self._entries[name] = (len(self.items), tuple(e for e, _ in offered))
        labels = tuple(_label(e) for e, _ in offered)
        errors = tuple(option.error for _, option in offered)
        self.items.append(Item(name, "format", labels, errors))

    def fix(self, size_bytes: float) -> None:
        """Give the sites that trials say nothing of a format, whatever else is chosen.

        That of most bits; where a size is asked for, what fits their part of it by bytes, with the
        least error of their own outputs.
        """
        fixed = self._fixed
        picked = [f.widest for f in fixed]
        if math.isfinite(size_bytes) and fixed:
            sites = sum(s.float_bytes for s in self.work.analysis.sites)
            own = sum(f.choice.site.float_bytes for f in fixed)
            room = size_bytes - (io.serialized_bytes(self.work.model) - sites)
            options = [[f.option(e) for e in f.entries] for f in fixed]
            chosen = choose(options, own / sites * room)
            least = [min(range(len(o)), key=lambda i, o=o: o[i].cost) for o in options]  # type: ignore[misc]
            picked = [f.entries[i] for f, i in zip(fixed, chosen or least, strict=True)]
        self.constant |= {f.choice.site.name: e for f, e in zip(fixed, picked, strict=True)}

    def _unsearched(self, site: Site | None, options: Sequence[Option]) -> str:
        """Why trials cannot tell a site's formats apart, or ""."""
        if not any(option.error for option in options):
            return "the outputs do not depend on it on the data"
        return "" if _is_plain(site) else "its weight is computed from the stored one"

    def _chain(self, chained: list[tuple[str, SiteEntry, float]]) -> None:
        """Convolutions with static 8-bit activations go together.

        Between a float and an 8-bit one the runtime converts every activation, which costs more
        than a convolution saves; codes that flow from one to the next cost nothing.
        """
        for name, entry, _ in chained:
            self._entries[name] = (len(self.items), (entry, None))
        self._chained = [name for name, _, _ in chained]
        error = sum(lost for _, _, lost in chained)
        name = f"{len(chained)} convolutions"
        self.items.append(Item(name, "format", (_label(chained[0][1]), "float"), (error, 0.0)))

    def _integer_entries(
        self,
    ) -> dict[str, Callable[[mixed.Choice], list[tuple[SiteEntry | None, Option]]]]:
        """Legal entries with 8-bit activations, by site, with what rounding those costs."""
        work = self.work
        entries: dict[str, dict[SiteEntry, None]] = {}
        kinds: tuple[planning.Activations, ...] = ("static", "dynamic")
        for kind in kinds:
            plan = planning.uniform(work, 8, kind)
            for name, entry in plan.quantize.items():
                if entry.activation != "none" and entry.weight.block is None:
                    entries.setdefault(name, {})[entry] = None
        self._integer = {name: list(own) for name, own in entries.items()}
        main = [n for n in entries if not work.sites[n].in_body]  # what can be observed
        activations = {n: work.sites[n].uses[0].activation for n in main}
        names = {n: v.name or "" for n, v in activations.items() if v is not None}
        wanted = [RoundingNoise(name) for name in sorted(set(names.values()))]
        noise = collect(work.model, wanted, work.job.data.judge, statistics_session)

        def made(choice: mixed.Choice) -> list[tuple[SiteEntry | None, Option]]:
            site = choice.site
            lost = noise[RoundingNoise(names[site.name])].relative
            found: list[tuple[SiteEntry | None, Option]] = []
            for entry in entries[site.name]:
                weight = np.asarray(work.weights.weight(site.name), np.float32)
                gram = work.grams(site.name) if work.job.data.fit.kind == "real" else None
                rounded = output_error(weight, work.weights.get(site.name, entry).decode(), gram)
                size = entry.size_bytes(site.n, site.k)
                found.append((entry, Option(size, (rounded + lost) * choice.factor)))
            return found

        return dict.fromkeys(names, made)

    def widths(self, score: str) -> None:
        """One item per group of channels, in the order of a score."""
        chosen = []
        readers = {leaf for r in self.prunable.readers for leaf in r.features.leaves()}
        readers |= {leaf for r in self.prunable.readers if r.groups for leaf in r.groups.leaves()}
        for group in self.prunable.groups:
            reason = _why_whole(group, readers)
            if reason:
                self.left_out[group.name] = reason
            else:
                chosen.append(group)
        if not chosen:
            return
        data: Literal["data", "random"] = "data" if self.work.job.data.fit.given else "random"
        between: Normaliser | Literal["output"] = (
            "output" if channel_score(score).own_scale else "mean"
        )
        options = PruneOptions(0.5, score=score, normalise=between, calibration=data)
        for name, ranking in rank(self.work, self.prunable, chosen, options).items():
            group = self.prunable.groups.by_name[name]
            masks = widths(ranking.order, _step(group), _LEAST_WIDTH)
            if len(masks) < 2:
                continue
            price = np.concatenate([[0.0], np.cumsum(ranking.cost)])
            errors = tuple(float(price[group.size - int(m.sum())]) for m in masks)
            self.groups[len(self.items)] = group
            self.keeps[len(self.items)] = tuple(masks)
            labels = tuple(str(int(m.sum())) for m in masks)
            self.items.append(Item(name, "width", labels, errors))

    def branches(self) -> None:
        """One item per residual branch."""
        graph = self.prunable.model.graph
        tree: BranchTree = branch_tree(graph)
        if not tree.branches:
            return
        names = [b.name for b in tree.branches]
        gated = GatedModel(self.work.model, names, gated_session)
        error = Ablation(gated.without, self.work.job.data.judge, "norm", self.work.job.weights)
        flow = Dataflow(graph)
        for branch in tree.branches:
            self._branches[len(self.items)] = set(removed_nodes(branch.branch, flow))
            errors = (error([branch.name]), 0.0)
            self.items.append(Item(branch.name, "branch", ("removed", "kept"), errors))

    def tokens(self, shorter: Sequence[Shorter]) -> list[Shorter]:
        """One item for all layers. Models that lack a site of the whole one are left out."""
        whole = {s.name: s.shape for s in self.sites.values()}
        kept = []
        for short in shorter:
            sites = {s.name: s.shape for s in find_sites(Prunable(short.version.model).model).sites}
            if sites == whole:
                kept.append(short)
            else:
                name = f"tokens {_tokens_label(short)}"
                self.left_out[name] = "its layers are not those of the whole model"
        if kept:
            self._shorter = kept
            errors = (*(short.error for short in kept), 0.0)
            labels = (*map(_tokens_label, kept), "all")
            self._tokens = len(self.items)
            self.items.append(Item("tokens", "token", labels, errors))
        return kept

    def space(self) -> SearchSpace:
        """The space of all items."""
        model, work = self.prunable.model, self.work
        whole = RunWork(model, work)
        shapes, macs = whole.shapes, whole.macs
        cuts = self._cuts()
        tensors = stored_float_tensors(model.graph)
        stored = [self._stored(v, cuts.get(v.name or "", ()), macs) for v in tensors]
        fixed_bytes = io.serialized_bytes(work.model) - sum(_bytes(t) for t in stored)
        fixed_bytes += sum(
            e.size_bytes(self.sites[n].n, self.sites[n].k) - self.sites[n].float_bytes
            for n, e in self.constant.items()
            if n in self.sites
        )
        written = tuple(self._written(shapes, macs))
        names = {i: self.items[i].name for i in self._branches}
        return SearchSpace(
            tuple(self.items),
            tuple(stored),
            self.keeps,
            fixed_bytes,
            written=written,
            left_out=self.left_out,
            tokens=tokens_left(self._tokens, whole, self._shorter, stored, len(written), names)
            if self._shorter
            else None,
        )

    def _written(
        self, shapes: Mapping[str, Sequence[int]], macs: Mapping[ir.Node, int]
    ) -> list[Written]:
        """What each node of the main graph writes, and one for all that others cost."""
        in_sites = {u.node for s in self.sites.values() for u in s.uses}
        codes = self._written_codes()
        found, others = [], dict(macs)
        for node in self.prunable.model.graph:
            elements = float(sum(math.prod(shapes.get(v.name or "", ())) for v in node.outputs))
            branches = frozenset(i for i, gone in self._branches.items() if node in gone)
            shape, cuts = self._written_cuts(node)
            count = others.pop(node, 0)
            op, own = ("", 0) if node in in_sites else (node.op_type, count)
            found.append(Written(op, elements, shape, cuts, branches, codes.get(node), own))
        rest = sum(count for node, count in others.items() if node not in in_sites)
        return [*found, Written("bodies", 0.0, macs=rest)] if rest else found

    def _written_codes(self) -> dict[ir.Node, int]:
        """Nodes whose outputs are bytes where an item has 8-bit activations."""
        found: dict[ir.Node, int] = {}
        chained = {n: self._entries[n][0] for n in self._chained}
        by_node = {u.node: i for n, i in chained.items() for u in self.sites[n].uses}
        for node in self.prunable.model.graph:
            if node in by_node:
                found[node] = by_node[node]
            elif node.op_type in _KEEPS_CODES:
                producers = [v.producer() for v in node.inputs if v is not None]
                items = {found.get(p) for p in producers if p is not None}
                if len(items) == 1 and (item := items.pop()) is not None:
                    found[node] = item
        return found

    def _written_cuts(self, node: ir.Node) -> tuple[tuple[int, ...], tuple[Cut, ...]]:
        """Shape of a node's first output, and the axes that shrink with widths."""
        dims = self.prunable.groups.analysis.dims.get(node.outputs[0]) if self.groups else None
        cuts = [
            Cut(axis, self._item_of[leaf], positions(dimension, leaf))
            for axis, dimension in enumerate(dims or ())
            for leaf in dict.fromkeys(dimension.leaves())
            if leaf in self._item_of
        ]
        return tuple(d.size for d in dims or ()), tuple(cuts)

    @cached_property
    def _item_of(self) -> dict[Factor, int]:
        return {group.factor: item for item, group in self.groups.items()}

    def _cuts(self) -> dict[str, tuple[Cut, ...]]:
        found: dict[str, list[Cut]] = {}
        for item, group in self.groups.items():
            for occurrence in group.weights:
                cut = Cut(occurrence.axis, item, group.owner(occurrence))
                found.setdefault(occurrence.name, []).append(cut)
        return {name: tuple(cuts) for name, cuts in found.items()}

    def _stored(
        self, value: ir.Value, cuts: tuple[Cut, ...], macs: Mapping[ir.Node, int]
    ) -> Stored:
        name, tensor = value.name or "", stored_tensor(value)
        assert tensor is not None
        site = self.sites.get(name)
        nodes = [u.node for u in site.uses] if site is not None else list(value.consumers())
        users = tuple(
            frozenset(i for i, gone in self._branches.items() if node in gone) for node in nodes
        )
        shape, itemsize = static_shape(tensor), int(tensor.nbytes) // max(int(tensor.size), 1)
        if name not in self._entries:
            own = float(sum(macs.get(n, 0) for n in nodes)) if site is not None else 0.0
            return Stored(name, shape, itemsize, cuts, users=users, macs=own)
        assert site is not None
        item, entries = self._entries[name]
        fits = cuts and self.work.job.data.fit.kind == "real" and not self.fitted.reason(name)
        gram = self.fitted(name) if fits else None
        if gram is not None:
            self.grams[name] = gram
        own = float(sum(macs.get(n, 0) for n in nodes))
        turned = _turned(site)
        return Stored(name, shape, itemsize, cuts, item, entries, turned, users, own, op=site.op)


def _tokens_label(short: Shorter) -> str:
    return f"{short.decision.saved:.0%} less work"


def _label(entry: SiteEntry | None) -> str:
    if entry is None:
        return "float"
    return f"{entry.weight} {entry.activation}" if rounds_activation(entry) else str(entry.weight)


def _bytes(tensor: Stored) -> float:
    return float(np.prod(tensor.shape, dtype=np.int64)) * tensor.itemsize


def _undominated(options: Sequence[Option]) -> list[int]:
    """Rising cost, falling error."""
    kept: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].error)):
        if not kept or options[i].error < options[kept[-1]].error:
            kept.append(i)
    return kept


def _is_plain(site: Site | None) -> bool:
    """Whether the stored tensor is the weight, or its transpose."""
    return site is not None and {s.op_type for s in site.weight.steps} <= _PLAIN_STEPS


def _turned(site: Site) -> bool:
    transposes = sum(s.op_type == "Transpose" for s in site.weight.steps)
    return flipped(site.shape, transposes, site.uses[0].transposed)


def _why_whole(group: Group, readers: Collection[Any]) -> str:
    if group.statistics:
        return "a normalisation mixes its channels"
    if any(o.operand is not None for o in group.occurrences):
        return "its tensors are cut differently by their readers"
    if group.factor not in readers:
        return "no layer whose input is observed reads it"
    return "has a single channel" if group.size < 2 else ""


def _step(group: Group) -> int:
    """Channels that go together: as round as leaves eight widths."""
    steps = (width_step(group, multiple) for multiple in _ROUND)
    return next((step for step in steps if 8 * step <= group.size), 1)
