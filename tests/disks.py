"""Commands on a disk with too little room, and two at once on one output: `python -m tests.disks`.

Each command writes to a file system in memory with a few pages left, its temporary files too: it
ends with one line, or writes everything. Inputs and old outputs stay as they are, and nothing is
left over. Then two commands write to the same place at the same time. File systems are mounted in
a namespace of their own (`unshare`), which needs no rights on most systems.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.quick import quicken
from tests.kills import COMMANDS, INPUTS, Ended, Run, complete, contents, leftovers, make_inputs

PAGE = 4096
ROOM = (0, 1, 3, 8, 16, 40)  # pages
PAIRS = (
    ("quantize-external", "quantize-external"), ("quantize-external", "lower"),
    ("quantize", "prune"), ("plan", "drop"),
)  # fmt: skip


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A file system of its own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


def leave(place: Path, pages: int) -> None:
    """Make a file system so small that this much room is left."""
    found = os.statvfs(place)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    size = used + pages * PAGE
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def faults(
    folder: Path, name: str, ended: Ended, inputs: Mapping[str, bytes], old: Mapping[str, bytes]
) -> list[str]:
    """What is not as it should be once a command has ended. old: outputs before."""
    found = []
    if ended.code not in (0, 2, 3):
        found.append(f"exit code {ended.code}: {ended.error[-300:]!r}")
    if ended.code == 2 and len(ended.error.strip().splitlines()) != 1:
        found.append(f"several lines: {ended.error[-300:]!r}")
    if contents(folder, INPUTS) != inputs:
        found.append("an input changed")
    if left := leftovers(folder):
        found.append(f"left {left}")
    for group in COMMANDS[name][1]:
        after = contents(folder, group)
        if ended.code == 2 and after != {k: v for k, v in old.items() if k in group}:
            found.append(f"{group} changed though it failed")
        found += [f"{each} is not whole" for each in after if not complete(folder, each)]
    return [f"{name}: {line}" for line in found]


def with_little_room(place: Path, source: Path, name: str, pages: int, *, old: bool) -> list[str]:
    """Run a command on a file system with so many pages left; its faults, or how it ended."""
    outputs = [each for group in COMMANDS[name][1] for each in group]
    with disk(place / "disk") as folder:
        for file in source.iterdir():
            shutil.copy(file, folder / file.name)
        if not old:
            for file in folder.glob("out*"):
                file.unlink()
        (folder / "tmp").mkdir()
        inputs, before = contents(folder, INPUTS), contents(folder, outputs)
        leave(folder, pages)
        ended = Run(folder, COMMANDS[name][0], fork=True, errors=place / "stderr").wait()
        found = faults(folder, name, ended, inputs, before)
    return found or ["refused" if ended.code == 2 else "written"]


def at_once(place: Path, source: Path, names: tuple[str, str], delay: float) -> list[str]:
    """Run two commands at the same time; their faults."""
    folder = place / "both"
    shutil.copytree(source, folder)
    inputs = contents(folder, INPUTS)
    runs = []
    for i, name in enumerate(names):
        runs.append(Run(folder, COMMANDS[name][0], fork=True, errors=place / f"stderr{i}"))
        time.sleep(delay)
    ended = [run.wait() for run in runs]
    found = [
        line
        for name, each in zip(names, ended, strict=True)
        for line in faults(folder, name, each, inputs, contents(folder, INPUTS))
        if "though it failed" not in line
    ]
    shutil.rmtree(folder)
    return found


def main() -> int:
    """Exit code 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.disks", description=__doc__)
    parser.add_argument("--inside", action="store_true", help="mount here, in this namespace")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.inside:
        call = ["unshare", "-rm", sys.executable, "-m", "tests.disks", "--inside"]
        return subprocess.run([*call, "--seed", str(options.seed)], check=False).returncode
    import lwqc.api  # noqa: F401 - forks have it imported

    quicken()
    rng = random.Random(options.seed)
    written = [name for name, (_, groups) in COMMANDS.items() if groups and name != "resume"]
    bad = 0
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        source = place / "inputs"
        source.mkdir()
        make_inputs(source)
        for name in ("out", "out-1", "out-2"):
            Run(
                source, ["quantize", "m.onnx", "-o", f"{name}.onnx", "--no-verify"], fork=True
            ).wait()
            for plan in (f"{name}.json", f"{name}.plan.json"):
                shutil.copy(source / "p.json", source / plan)
        shutil.rmtree(source / "tmp")
        (source / "stderr").unlink()
        print("| command | " + " | ".join(f"{pages} pages" for pages in ROOM) + " |")
        print("| --- |" + " --- |" * len(ROOM))
        for name in written:
            row = []
            for pages in ROOM:
                found = with_little_room(place, source, name, pages, old=rng.random() < 0.5)
                bad += found[0] not in ("refused", "written")
                row.append("; ".join(found))
            print(f"| `{name}` | {' | '.join(row)} |", flush=True)
        for names in PAIRS:
            for _ in range(5):
                found = at_once(place, source, names, rng.random() * 0.3)
                bad += len(found)
                for line in found:
                    print(f"{' and '.join(names)} at once: {line}", flush=True)
    print(f"{bad} faults; {5 * len(PAIRS)} times two commands at once")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
