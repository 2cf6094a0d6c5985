"""Writes `lwqc/backends/cuda_kernels.txt`: what the CUDA provider of the installed wheel can run.

Run under stub libraries, in a process of its own:
`python -m tests.backends.cuda_kernel_table` prints the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.backends import cuda_stubs

_LAST = 2**31 - 1
Row = tuple[str, str, int, int, tuple[tuple[str, tuple[str, ...]], ...]]


def table() -> str:
    """The table's text, made in a process of its own under fresh stub libraries."""
    with tempfile.TemporaryDirectory() as folder:
        env = cuda_stubs.build(Path(folder))
        command = [sys.executable, "-m", "tests.backends.cuda_kernel_table", "--here"]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout


def _print_here() -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = state.get_all_opkernel_def()
    rows = {_row(k) for k in kernels if k.provider == "CUDAExecutionProvider"}
    contrib = {(domain, op) for domain, op, *_ in rows if domain}
    print(f"# Kernels of the CUDA provider of onnxruntime {onnxruntime.__version__}.")
    print("# domain operator first-last variable=types ...; types as in onnx, without tensor().")
    for domain, op, first, last, types in sorted(_merged(rows)):
        known = " ".join(f"{variable}={','.join(names)}" for variable, names in types)
        print(
            f"{domain or 'ai.onnx'} {op} {first}-{'' if last == _LAST else last} {known}".rstrip()
        )
    print("# Type variables of the operands of operators that onnx has no schema of.")
    for schema in sorted(state.get_all_operator_schema(), key=lambda s: (s.domain, s.name)):
        if (schema.domain, schema.name) in contrib:
            operands = ",".join(i.typeStr.replace(" ", "") for i in schema.inputs)
            print(f"operands {schema.domain} {schema.name} {operands}")
    sys.stdout.flush()
    os._exit(0)


def _row(kernel: object) -> Row:
    types = kernel.type_constraints  # type: ignore[attr-defined]
    named = tuple(
        (variable, tuple(sorted(n.replace("tensor(", "").rstrip(")") for n in names)))
        for variable, names in sorted(types.items())
    )
    first, last = kernel.version_range  # type: ignore[attr-defined]
    return kernel.domain, kernel.op_name, first, last, named  # type: ignore[attr-defined]


def _merged(rows: set[Row]) -> set[Row]:
    """Rows that differ in the types of one variable only become one row."""
    merged = set(rows)
    changed = True
    while changed:
        changed = False
        groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in merged:
            for i in range(len(row[4])):
                rest = (*row[:4], i, *row[4][:i], row[4][i][0], *row[4][i + 1 :])
                groups[rest].append(row)
        for rest, same in sorted(groups.items(), key=str):
            if len(same) > 1 and all(r in merged for r in same):
                i = int(rest[4])  # type: ignore[call-overload]
                names = tuple(sorted({n for r in same for n in r[4][i][1]}))
                types = (*same[0][4][:i], (same[0][4][i][0], names), *same[0][4][i + 1 :])
                merged -= set(same)
                merged.add((*same[0][:4], types))
                changed = True
                break
    return merged


if __name__ == "__main__":
    if "--here" in sys.argv:
        _print_here()
    else:
        print(table(), end="")
