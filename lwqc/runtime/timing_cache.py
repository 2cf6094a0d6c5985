"""Times measured on this machine, kept between runs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lwqc.errors import InputError
from lwqc.model.documents import parse_json, read_text
from lwqc.model.saving import write_text
from lwqc.runtime.session import VERSION, default_threads
from lwqc.runtime.timer import longest_s

Pair = tuple[float, float]  # seconds of the float operator, and of a form
VARIABLE = "LWQC_CACHE"


@dataclass
class TimingCache:
    """Seconds by what was timed. path: of the file; None keeps nothing beyond `known`."""

    path: Path | None
    known: dict[str, Pair] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    @contextmanager
    def opened(cls, known: dict[str, Pair] | None = None) -> Iterator[TimingCache]:
        """The cache of this machine and runtime; what was added is kept on leaving.

        known: of the same run, which needs no file for it; the file adds to what is missing in it.
        """
        cache = cls(_path(), {} if known is None else known)
        if not cache.known:
            cache.known.update(_read(cache.path))
        try:
            yield cache
        finally:
            cache.save()

    def add(self, key: str, pair: Pair) -> None:
        """Remember one measurement."""
        self.known[key] = pair
        self.changed = True

    def save(self) -> None:
        """Write what is new; a folder that cannot be written only costs the next run time."""
        if self.path is None or not self.changed:
            return
        with suppress(OSError, InputError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            merged = {**_read(self.path), **self.known}
            write_text(self.path, json.dumps(merged, indent=0))


def _path() -> Path | None:
    """`$LWQC_CACHE` (`off`: none), by default `lwqc` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lwqc"
    except RuntimeError:  # no home folder
        return None
    name = f"kernels-{machine()}-{VERSION}.json"
    return (Path(chosen) if chosen else usual) / name


def machine() -> str:
    """The processor, how many of its cores sessions use, and for how long they are timed.

    In letters, digits and dashes.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    flags = [line.partition(":")[2] for line in lines if line.startswith("flags")]
    model = models[0] if models else platform.processor() or platform.machine()
    kernels = sum(word in flags[0].split() for word in _KERNEL_FLAGS) if flags else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{model} {kernels} {default_threads() or cores}"
    if longest_s() < math.inf:  # such times are not as exact as others
        text += f" {longest_s()} s"
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


_KERNEL_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def _read(path: Path | None) -> dict[str, Pair]:
    """What a file holds; nothing where it is missing or not ours."""
    if path is None:
        return {}
    try:
        found = parse_json(read_text(path))
        return {str(k): (float(a), float(b)) for k, (a, b) in found.items() if a > 0 and b > 0}
    except (InputError, ValueError, TypeError, AttributeError):
        return {}
