"""Times measured on this machine, kept between runs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lwqc.runtime.session import VERSION, default_threads

Pair = tuple[float, float]  # seconds of the float operator, and of a form
VARIABLE = "LWQC_CACHE"


@dataclass
class TimingCache:
    """Seconds by what was timed. path: of the file; None keeps nothing beyond this run."""

    path: Path | None
    known: dict[str, Pair] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[TimingCache]:
        """The cache of this machine and runtime; what was added is kept on leaving."""
        cache = cls(_path())
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
        scratch = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            merged = {**_read(self.path), **self.known}
            scratch.write_text(json.dumps(merged, indent=0))
            os.replace(scratch, self.path)
        except OSError:
            with suppress(OSError):
                scratch.unlink()


def _path() -> Path | None:
    """`$LWQC_CACHE` (`off`: none), by default `lwqc` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    try:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lwqc"
    except RuntimeError:  # no home folder
        return None
    name = f"times-{_machine()}-{VERSION}.json"
    return (Path(chosen) if chosen else usual) / name


def _machine() -> str:
    """Processor and how many of its cores sessions use, as part of a file name."""
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
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


_KERNEL_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def _read(path: Path | None) -> dict[str, Pair]:
    """What a file holds; nothing where it is missing or not ours."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(k): (float(a), float(b)) for k, (a, b) in found.items() if a > 0 and b > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
