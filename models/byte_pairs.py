"""A byte-level byte-pair vocabulary: trained, saved, and applied with plain Python."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

Pair = tuple[int, int]
# Words with one leading space, runs of punctuation, and a line break with its indentation.
_WORDS = re.compile(rb" ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z_0-9]+|\r?\n[ \t]*|\s+")


class BytePairs:
    """Tokens 0..255 are bytes; token 256 + i is merge i."""

    def __init__(self, merges: Iterable[Pair]) -> None:
        """Take merges in the order they were learned."""
        self.merges = [(int(a), int(b)) for a, b in merges]
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._known: dict[bytes, tuple[int, ...]] = {}

    @cached_property
    def spelled(self) -> list[bytes]:
        """The bytes of every token."""
        spelled = [bytes([i]) for i in range(256)]
        for a, b in self.merges:
            spelled.append(spelled[a] + spelled[b])
        return spelled

    def encode(self, text: bytes) -> list[int]:
        """Tokens of a text; `decode` gives the same bytes back."""
        tokens: list[int] = []
        for word in _WORDS.findall(text):
            known = self._known.get(word)
            if known is None:
                known = self._known[word] = self._merge(word)
            tokens += known
        return tokens

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes that the tokens spell."""
        return b"".join(self.spelled[t] for t in tokens)

    def _merge(self, word: bytes) -> tuple[int, ...]:
        """Apply the merges to one word, earliest learned first."""
        tokens: tuple[int, ...] = tuple(word)
        while len(tokens) > 1:
            pairs = itertools.pairwise(tokens)
            rank, pair = min((self._rank.get(p, len(self.merges)), p) for p in pairs)
            if rank == len(self.merges):
                break
            tokens = _join(tokens, pair, 256 + rank)
        return tokens

    def save(self, path: Path) -> None:
        """Write the merges as JSON."""
        path.write_text(json.dumps({"merges": self.merges}, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> BytePairs:
        """Read what `save` wrote."""
        return cls(json.loads(path.read_text())["merges"])


def learn(texts: Iterable[bytes], size: int) -> BytePairs:
    """Learn a vocabulary of `size` tokens: merge the most frequent pair, over and over.

    Ties go to the smaller pair, so that the same texts give the same vocabulary.
    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """
    counts = Counter(word for text in texts for word in _WORDS.findall(text))
    words = [(tuple(word), n) for word, n in sorted(counts.items())]
    frequency: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (tokens, n) in enumerate(words):
        for pair in itertools.pairwise(tokens):
            frequency[pair] += n
            places[pair].add(index)
    merges: list[Pair] = []
    while frequency and len(merges) < size - 256:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        merges.append(best)
        for index in places.pop(best):
            tokens, n = words[index]
            joined = _join(tokens, best, 255 + len(merges))
            words[index] = (joined, n)
            for pair in itertools.pairwise(tokens):
                frequency[pair] -= n
            for pair in itertools.pairwise(joined):
                frequency[pair] += n
                places[pair].add(index)
        frequency = +frequency
    return BytePairs(merges)


def _join(tokens: tuple[int, ...], pair: Pair, token: int) -> tuple[int, ...]:
    """Replace every occurrence of the pair, from the left."""
    joined: list[int] = []
    i = 0
    while i < len(tokens):
        if tokens[i : i + 2] == pair:
            joined.append(token)
            i += 2
        else:
            joined.append(tokens[i])
            i += 1
    return tuple(joined)
