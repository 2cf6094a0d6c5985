"""The steps of a build: each a command with its options, what it takes and what it leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwqc.cli.pipeline.commands import Command, find_command
from lwqc.cli.pipeline.document import SHARED, STEP_KEYS, Document, Gates, StepTable
from lwqc.cli.pipeline.spelling import check_known
from lwqc.errors import InputError

WRITTEN = ("plan_out", "engines", "report")  # options that name files which a command writes
ORIGINAL = "model"  # what the first step takes, by name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Step:
    """One command of a build. Paths are relative to the folder of the file.

    takes: name of the step whose model it takes, or `model`. model: that model; "" for `convert`.
    original: what budgets and losses are against. output: the file that it writes; "" where it only
    looks. is_output: whether the user named that file, rather than it being on the way to others.
    options: by key, those of all steps included. depends: patterns of files that Python code reads;
    None where that is not said. where: starts messages.
    """

    name: str
    command: Command
    takes: str
    model: str
    original: str
    options: Mapping[str, Any]
    output: str
    is_output: bool
    gates: Gates
    depends: tuple[str, ...] | None
    where: str

    @property
    def writes_model(self) -> bool:
        """Whether other steps can take what it writes."""
        return bool(self.output) and self.command.name != "plan"

    @property
    def arguments(self) -> list[str]:
        """Its command line, without the program."""
        models = {
            "model": [self.model],
            "candidate": [self.model],
            "original": [self.original],
            "models": [self.original, self.model],
        }
        line = self.command.arguments(self.options, models, self.where)
        if self.output:
            line.append(f"--output={self.output}")
        if self.command.has("output") and self.command.has("original") and self.takes != ORIGINAL:
            line.append(f"--original={self.original}")
        return line


@dataclass(frozen=True)
class Build:
    """All steps of a file, in order. folder: for what is no output. report: "" for none."""

    file: Path
    steps: tuple[Step, ...]
    folder: Path
    report: str


def resolve(file: Path, document: Document, known: Mapping[str, Command]) -> Build:
    """Look up the commands, options and steps that a file names. Raises InputError."""
    folder = Path(document.folder or f"{file.stem}.lwqc")
    steps: list[Step] = []
    several: list[str] = []  # models that the last step left, where they are more than one
    for table in document.step:
        where = f"{file}: step {table.name or table.run}"
        command = find_command(table.run, known, where)
        takes = _taken(table, steps, several, where) if command.places else ""
        first = len(steps)
        for one in _for_each_target(table, where):
            steps.append(_step(one, takes, command, document, folder, steps, where))
        made = [step.name for step in steps[first:] if step.writes_model]
        several = made if len(made) > 1 else [] if made else several
    return Build(file, tuple(steps), folder, document.report)


def _for_each_target(table: StepTable, where: str) -> list[StepTable]:
    """The step once for each of its targets."""
    if not table.targets:
        return [table]
    if "target" in table.options:
        raise InputError(f"{where}: has both target and targets; leave one out")
    if table.output and "{target}" not in table.output:
        raise InputError(f"{where}: output: expected {{target}} in it, as there are several")
    return [
        table.model_copy(
            update={
                "name": f"{table.name or table.run}-{target}",
                "output": table.output.replace("{target}", target),
                "options": {**table.options, "target": target},
            }
        )
        for target in table.targets
    ]


def _step(
    table: StepTable,
    takes: str,
    command: Command,
    document: Document,
    folder: Path,
    before: list[Step],
    where: str,
) -> Step:
    name = _own_name(table, before, where)
    options = _options(table, command, document.shared, before, where)
    if command.converts and (before or document.model):
        raise InputError(f"{where}: {command.name} comes first, in place of the key model")
    if not command.converts and not before and not document.model:
        raise InputError(f"{where}: has no model to begin with; give the key model above the steps")
    writes = command.has("output")
    if not writes and table.output:
        raise InputError(f"{where}: {command.name} writes nothing: leave out output")
    measures = command.has("original") and command.name not in ("plan", "verify")
    if not measures and table.gates != Gates():
        raise InputError(f"{where}: {command.name} measures no result: leave out gates")
    suffix = ".plan.json" if command.name == "plan" else ".onnx"
    gates = table.gates.over(document.gates) if table.output and measures else table.gates
    if options.get("verify") is False and (gates.max_drop, gates.max_latency) != (None, None):
        raise InputError(f"{where}: gates are measured on the saved file: leave out verify = false")
    output = (table.output or str(folder / f"{name}{suffix}")) if writes else ""
    _check_output(output, document, before, where)
    if command.has("plan_out"):
        options.setdefault("plan_out", str(folder / f"{name}.plan.json"))
    models = {step.name: step.output for step in before}
    original = document.model or next((s.output for s in before), "")
    depends = table.depends if table.depends is not None else document.depends
    return Step(
        name,
        command,
        takes,
        original if takes == ORIGINAL else models.get(takes, ""),
        original,
        options,
        output,
        bool(table.output),
        gates,
        None if depends is None else tuple(depends),
        where,
    )


def _own_name(table: StepTable, before: list[Step], where: str) -> str:
    name = table.name or table.run
    if not _NAME.fullmatch(name) or name == ORIGINAL:
        raise InputError(f"{where}: name {name!r}: expected letters, digits, '-', '_' and '.'")
    if any(step.name == name for step in before):
        raise InputError(f"{where}: another step is called {name!r}; give each a name of its own")
    return name


def _taken(table: StepTable, before: list[Step], several: list[str], where: str) -> str:
    """Name of the step whose model is taken: the one said, or the last that wrote one."""
    written = [step.name for step in before if step.writes_model]
    if table.takes:
        check_known(table.takes, [ORIGINAL, *written], where, "from")
        return table.takes
    if several:
        raise InputError(f"{where}: {', '.join(several)} came before; say from = one of them")
    return written[-1] if written else ORIGINAL


def _options(
    table: StepTable,
    command: Command,
    shared: Mapping[str, Any],
    before: list[Step],
    where: str,
) -> dict[str, Any]:
    """The step's own options and the shared ones that its command has."""
    known = command.options
    for key in table.options:
        check_known(key, {*known, *STEP_KEYS}, where, "key")
    options = {key: shared[key] for key in SHARED if key in shared and key in known}
    options |= table.options
    plans = {step.name: step.output for step in before if step.command.name == "plan"}
    if isinstance(options.get("plan_file"), str):
        options["plan_file"] = plans.get(options["plan_file"], options["plan_file"])
    return options


def _check_output(output: str, document: Document, before: list[Step], where: str) -> None:
    if not output:
        return
    taken = {Path(document.model): "the model"} if document.model else {}
    taken |= {Path(step.output): f"what step {step.name} writes" for step in before if step.output}
    if Path(output) in taken:
        raise InputError(f"{where}: output {output}: is {taken[Path(output)]}; choose another name")
