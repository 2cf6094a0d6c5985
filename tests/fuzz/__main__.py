"""`python -m tests.fuzz --minutes 60 [--seed S]`: a table of how commands end on mutants."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import suppress

from tests.fuzz.commands import COMMANDS
from tests.fuzz.corpus import MODELS
from tests.fuzz.run import GOOD, OUTCOMES, Ending, endings

_TELL = 500


def main() -> int:
    """Exit code 1 where there is any fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mutants", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--traces", action="store_true", help="print every fault in full")
    chosen = parser.parse_args()
    done: list[Ending] = []
    with suppress(KeyboardInterrupt):  # what was found until then counts
        for ending in endings(chosen.seed, chosen.first, chosen.mutants, 60 * chosen.minutes):
            done.append(ending)
            if ending.outcome not in GOOD and chosen.traces:
                print(f"--- {_place(ending)}: {ending.outcome}\n{ending.said}", flush=True)
            if len(done) % _TELL == 0:
                print(f"{len(done)} mutants, the last is {ending.number}", file=sys.stderr)
    print(table(done))
    print(kinds(done))
    return any(e.outcome not in GOOD for e in done)


def _place(ending: Ending) -> str:
    changed = "+".join(ending.mutant.changes)
    return f"{ending.number} {ending.mutant.model} {changed} {ending.command}"


def table(done: list[Ending]) -> str:
    """Outcomes by command."""
    lines = ["| command | " + " | ".join(OUTCOMES) + " |", "| --- |" + " ---: |" * len(OUTCOMES)]
    for name in [*COMMANDS, "all"]:
        found = Counter(e.outcome for e in done if name in (e.command, "all"))
        lines.append(f"| {name} | " + " | ".join(str(found[o]) for o in OUTCOMES) + " |")
    slowest = max((e.seconds for e in done), default=0)
    largest = max((e.size_bytes for e in done), default=0)
    lines.append(
        f"\n{len(done)} mutants of {len(MODELS)} models; the longest run took {slowest:.1f} s, "
        f"the largest {largest / 2**20:.0f} MiB."
    )
    return "\n".join(lines)


def kinds(done: list[Ending]) -> str:
    """Faults of one kind, with the first mutant of each."""
    faults = [e for e in done if e.outcome not in GOOD]
    found = Counter((e.outcome, e.kind) for e in faults)
    first = {(e.outcome, e.kind): e for e in reversed(faults)}
    return "\n".join(f"{n:5} {o}: {k} [{_place(first[o, k])}]" for (o, k), n in found.most_common())


if __name__ == "__main__":
    raise SystemExit(main())
