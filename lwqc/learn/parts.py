"""Where a program may be cut: places where few tensors carry what was computed with weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lwqc.learn.module import OnnxModule
from lwqc.learn.program import Program

_WIDEST = 4  # tensors that may carry an error from one part to the next
_MOST = 8  # weights in a part that is cut further, at wider places


@dataclass(frozen=True)
class Part:
    """Steps from `begin` up to `end`.

    trained: names of parameters that only these steps read. wanted: names of the tensors that carry
    what was computed with weights on to later steps, or out of the graph.
    """

    begin: int
    end: int
    trained: tuple[str, ...]
    wanted: tuple[str, ...]


def parts(module: OnnxModule, known: Collection[str], *, least: int = 2) -> list[Part]:
    """A program in parts, in their order; steps behind the last weight are in none.

    A cut is where one tensor carries all that weights had a say in, as between residual blocks, or
    up to four, where there would be more than eight weights in a part otherwise. It must be among
    `known` tensors. least: weight matrices in each part but the last.
    """
    cutting = _Cutting.of(module, known)
    return cutting.parts(cutting.ends(least))


def joined_parts(
    module: OnnxModule,
    known: Collection[str],
    entropies: Callable[[Collection[str]], Mapping[str, float]],
) -> list[Part]:
    """As many parts as `parts` makes of blocks, joined where layers depend on each other most.

    All begin apart, as with `least=1`. Those between which the tensors of the highest entropy are
    carried are joined first, for errors there say most about what later layers should make up for;
    at most eight weights are in one. Source: Q-VLM, arXiv 2410.08119, which cuts where the entropy
    is low.

    entropies: of tensors by name, in one unit.
    """
    cutting = _Cutting.of(module, known)
    count, ends = len(cutting.ends(2)), cutting.ends(1)
    places = {end: cutting.carried_names(end) for end in ends[:-1]}
    found = entropies({name for names in places.values() for name in names})
    sizes = {end: max(found[name] for name in names) for end, names in places.items()}
    for end in sorted(sizes, key=lambda end: (-sizes[end], end)):
        if len(ends) <= count:
            break
        rest = [e for e in ends if e != end]
        if cutting.most(rest) <= max(_MOST, cutting.most(ends)):
            ends = rest
    return cutting.parts(ends)


@dataclass(frozen=True)
class _Cutting:
    """weights: how many steps up to each one meet a matrix. carried: places across each boundary.

    span: first and last step that a parameter meets inputs at, by its name. given: places whose
    values depend on inputs; moved: those that depend on parameters too.
    """

    program: Program
    names: dict[int, str]
    known: Collection[str]
    weights: list[int]
    carried: list[frozenset[int]]
    span: dict[str, tuple[int, int]]
    given: frozenset[int]
    moved: frozenset[int]

    @staticmethod
    def of(module: OnnxModule, known: Collection[str]) -> _Cutting:
        steps = module.program.steps
        last = {place: index for index, step in enumerate(steps) for place in step.reads}
        # Parameters that a place was computed of alone, as weights are of codes.
        trained = frozenset(name for name, _ in module.named_parameters())
        origins = {h.number: met for h, names in module.kept() if (met := trained & set(names))}
        span: dict[str, tuple[int, int]] = {}
        given, moved, alive = set(module.program.inputs), set[int](), set[int]()
        matrices, weights, carried = 0, [0], [frozenset[int]()]
        for index, step in enumerate(steps):
            met = frozenset().union(*(origins.get(place, frozenset()) for place in step.reads))
            if given.isdisjoint(step.reads):
                origins.update(dict.fromkeys(step.outputs, met))
            else:
                given.update(step.outputs)
                matrices += any(getattr(module, name).ndim > 1 for name in met)
                span |= {name: (span.get(name, (index, index))[0], index) for name in met}
                if met or not moved.isdisjoint(step.reads):
                    moved.update(step.outputs)
                    alive.update(step.outputs)
            alive = {place for place in alive if last.get(place, -1) > index}
            weights.append(matrices)
            carried.append(frozenset(alive))
        names = {place: name for name, place in module.places.items() if name}
        return _Cutting(
            module.program, names, known, weights, carried, span, frozenset(given), frozenset(moved)
        )

    @property
    def last(self) -> int:
        return len(self.program.steps)

    def ends(self, least: int) -> list[int]:
        """Steps that parts end before."""
        found = [self.last]
        for width in range(1, _WIDEST + 1):
            found = self.refined(found, width, least)
        return found

    def parts(self, ends: Sequence[int]) -> list[Part]:
        """Those between ends, where something is trained in them."""
        begins = [0, *ends[:-1]]
        found = [self.part(begin, end) for begin, end in zip(begins, ends, strict=True)]
        return [part for part in found if part.trained and part.wanted]

    def most(self, ends: Sequence[int]) -> int:
        """Weights in the part that has most of them."""
        return max(self._met(begin, end) for begin, end in pairwise([0, *ends]))

    def carried_names(self, end: int) -> list[str]:
        """Tensors that carry on what weights had a say in."""
        return sorted(self.names[place] for place in self.carried[end])

    def refined(self, ends: Sequence[int], width: int, least: int) -> list[int]:
        """More ends of parts, where so many tensors or fewer are carried across."""
        found, begin = [], 0
        for end in ends:
            if width == 1 or self._met(begin, end) > _MOST:
                found += self._between(begin, end, width, least)
            found.append(end)
            begin = end
        return found

    def _between(self, begin: int, end: int, width: int, least: int) -> list[int]:
        found: list[int] = []
        for index in range(begin + 1, end):
            decodes = self.given.isdisjoint(self.program.steps[index - 1].outputs)
            if decodes or not self._open(index, width) or self._met(index, end) < least:
                continue  # what decodes a weight goes with its reader
            if found and self._met(found[-1], index) == 0:
                found[-1] = index  # activations and sums go with the weights in front of them
            elif self._met(found[-1] if found else begin, index) >= least:
                found.append(index)
        return found

    def _met(self, begin: int, end: int) -> int:
        """Weights between two places."""
        return self.weights[end] - self.weights[begin]

    def _open(self, index: int, width: int) -> bool:
        carried = self.carried[index]
        return 0 < len(carried) <= width and all(self.names.get(p) in self.known for p in carried)

    def part(self, begin: int, end: int) -> Part:
        trained = [n for n, (first, last) in self.span.items() if begin <= first and last < end]
        made = {place for step in self.program.steps[begin:end] for place in step.outputs}
        wanted = self.carried[end] | (made & set(self.program.outputs) & self.moved)
        names = sorted({self.names[p] for p in wanted if self.names.get(p) in self.known})
        return Part(begin, end, tuple(trained), tuple(names))
