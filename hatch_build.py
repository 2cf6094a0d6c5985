"""Compiles `lwqc/quant/blocks.c` where there is a C compiler; lwqc works without it, see ADR 3.

`python hatch_build.py` does so for a source tree that is used as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "lwqc" / "quant" / "blocks.c"
LIBRARY = SOURCE.with_name("_blocks.so")
# Contracted products would round otherwise than numpy's; without errno loops become vectors.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")


def compiled(target: Path) -> str:
    """Compile to `target`; returns why that was not possible, or ""."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None or sys.platform == "win32":
        return "there is no C compiler"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()}"
        made.replace(target)
    return ""


def _hook() -> type:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class Compile(BuildHookInterface):  # type: ignore[type-arg]
        """Compiles before a wheel is made, an editable one too."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """A wheel with a library is for one kind of machine, and for every Python."""
            if reason := compiled(LIBRARY):
                self.app.display_warning(f"lwqc without its compiled kernel: {reason}")
                return
            machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{machine}"

    return Compile


def get_build_hook() -> type:
    """What hatchling asks for."""
    return _hook()


if __name__ == "__main__":
    sys.exit(compiled(LIBRARY) or None)
