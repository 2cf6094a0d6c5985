"""What looks at a model between the passes of a pipeline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lwqc.errors import InputError, UnsoundResult
from lwqc.model import io
from lwqc.passes.base import name_of
from lwqc.passes.pipeline import Instrument
from lwqc.passes.registry import item_of
from lwqc.passes.snapshot import Snapshot
from lwqc.passes.soundness import faults

Outputs = Mapping[str, NDArray[Any]]
Step = ir.passes.PassBase
TOLERANCE = 1e-4  # of an output's largest number: sums in another order stay below in float32
UNREPORTED = "changed the graph but reported no change"


class Limit(Instrument):
    """Ends a pipeline after so many passes."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def before(self, step: Step, model: ir.Model) -> bool:
        """Whether one more may run."""
        self.left -= 1
        return self.left >= 0


class Counting(Instrument):
    """Calls `report` with the number of passes that are over, in front of each."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._over = 0

    def before(self, step: Step, model: ir.Model) -> bool:
        """Report."""
        self._report(self._over)
        self._over += 1
        return True


class Timing(Instrument):
    """Seconds that each pass took, with the tidying behind it, in `rows`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self._start = 0.0

    def before(self, step: Step, model: ir.Model) -> bool:
        """Start the clock."""
        self._start = time.perf_counter()
        return True

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Stop it."""
        self.rows.append((name_of(step), time.perf_counter() - self._start))


class Count(Instrument):
    """How many nodes of each operator a pass added or, below 0, took away, in `rows`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, int]]] = []
        self._before: Counter[str] = Counter()

    def before(self, step: Step, model: ir.Model) -> bool:
        """Count."""
        self._before = _operators(model)
        return True

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Compare."""
        now = _operators(model)
        moved = {op: now[op] - self._before[op] for op in sorted({*now, *self._before})}
        self.rows.append((name_of(step), {op: n for op, n in moved.items() if n}))


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


class Trace(Instrument):
    """One row for each pass, as JSON takes it: its text, changes, milliseconds and operators."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._parts = (Timing(), Count())

    def before(self, step: Step, model: ir.Model) -> bool:
        """Count, and start the clock."""
        return all(part.before(step, model) for part in reversed(self._parts))

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Add the row."""
        timing, count = self._parts
        for part in self._parts:
            part.after(step, model, changes)
        row = {"pass": str(item_of(step)), "changes": changes, "ms": 1e3 * timing.rows[-1][1]}
        self.rows.append({**row, "operators": count.rows[-1][1]})


class Dump(Instrument):
    """Writes the model behind each pass that changed it: `01-fold-constants.onnx`, and so on."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}") from error
        self._folder = folder
        self._number = 0

    def before(self, step: Step, model: ir.Model) -> bool:
        """Count."""
        self._number += 1
        return True

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Write a file, numbered as the pass in the pipeline."""
        if changes:
            io.save(model, self._folder / f"{self._number:02}-{name_of(step)}.onnx")


class PrintAfter(Instrument):
    """Shows the model as text behind each pass of one name; `shown` counts them."""

    def __init__(self, name: str, show: Callable[[str], None]) -> None:
        self.name = name
        self.shown = 0
        self._show = show

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Show it without weights."""
        if name_of(step) == self.name:
            self.shown += 1
            self._show(ir.to_onnx_text(model, exclude_initializers=True))


@dataclass
class Verify(Instrument):
    """Stops a pipeline behind the pass that makes a model invalid, or moves its outputs.

    run: what gives the outputs of a model; without it nothing is run. tolerance: of an output's
    largest number. Only passes that are `exact` must keep the outputs; what the others give is what
    the next ones must keep. What is wrong with the model at first is no fault of a pass. Whether a
    pass changed something is seen in the model: one that changes it and reports nothing is wrong,
    for nothing is tidied behind it and what is known of the model is kept. believing: what passes
    report is not doubted, and models that are said to be unchanged are not looked at.

    Raises UnsoundResult that names the pass.
    """

    run: Callable[[ir.Model], Outputs] | None = None
    tolerance: float = TOLERANCE
    believing: bool = False
    _known: list[str] | None = field(default=None, init=False)
    _expected: Outputs = field(default_factory=dict, init=False)
    _seen: Snapshot | None = field(default=None, init=False)

    def before(self, step: Step, model: ir.Model) -> bool:
        """Look at the model as it comes."""
        if self._known is None:
            self._known = faults(model)
            self._expected = self.run(model) if self.run is not None else {}
        if self._seen is None and not self.believing:
            self._seen = Snapshot(model)
        return True

    def after(self, step: Step, model: ir.Model, changes: int) -> None:
        """Look at it again."""
        if self.believing and not changes:
            return
        new = [fault for fault in faults(model) if fault not in (self._known or ())]
        if new:
            raise UnsoundResult(f"{item_of(step)}: made the model invalid: {new[0]}")
        if self.believing:
            pass
        elif changes:
            self._seen = Snapshot(model)
        elif self._seen is not None and self._seen.differs(model):
            raise UnsoundResult(f"{item_of(step)}: {UNREPORTED}")
        if self.run is None or not changes:
            return
        found = self.run(model)
        if getattr(step, "exact", False):
            if moved := moved_output(self._expected, found, self.tolerance):
                raise UnsoundResult(f"{item_of(step)}: {moved}")
        else:
            self._expected = found


def moved_output(expected: Outputs, found: Outputs, tolerance: float) -> str:
    """What the output that differs most has, in a line; "" where all agree."""
    if list(expected) != list(found):
        return f"outputs are {', '.join(found)}, before {', '.join(expected)}"
    name, moved = max(
        ((name, distance(a, found[name])) for name, a in expected.items()), key=lambda row: row[1]
    )
    if moved <= tolerance:
        return ""
    return f"output {name} moved by {moved:.3g} of its largest number, allowed is {tolerance:.3g}"


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest difference of two arrays in units of the largest number of `a`.

    Infinite for other shapes, for other NaN and infinities, and for what is no float and differs.
    """
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    sound = np.isfinite(x)
    if not np.array_equal(x[~sound], y[~sound], equal_nan=True) or not np.isfinite(y[sound]).all():
        return float("inf")
    largest = float(np.abs(x[sound]).max(initial=0.0)) or 1.0
    return float(np.abs(x[sound] - y[sound]).max(initial=0.0)) / largest
