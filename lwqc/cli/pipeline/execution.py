"""Runs the steps of a build that are not up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lwqc.cli.pipeline.commands import named
from lwqc.cli.pipeline.content import code_of, facts, file_digest, model_files
from lwqc.cli.pipeline.folders import make_folder
from lwqc.cli.pipeline.gates import Gate, checked
from lwqc.cli.pipeline.state import Record, State, read_state, why_again
from lwqc.cli.pipeline.steps import ORIGINAL, WRITTEN, Build, Step
from lwqc.compile.result import finite
from lwqc.errors import InputError, LwqcError
from lwqc.model.saving import write_text

_STATE = "state.json"
_DONE, _MISSED = 0, 3  # exit codes of commands that wrote what they were to write
Say = Callable[[str], None]


@dataclass(frozen=True)
class StepResult:
    """A step and what came of it. why: reasons to run it; none where it was kept."""

    step: Step
    why: tuple[str, ...]
    record: Record
    gates: tuple[Gate, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """Bounds that do not hold, of gates and of the command's own options, a line each."""
        own = () if self.record.exit_code == _DONE else _own_missed(self.step, self.record)
        return (*own, *(gate.text for gate in self.gates if not gate.met))


def check(build: Build) -> None:
    """Look at everything that shows without work. Raises InputError."""
    for step in build.steps:
        with named(step.where):
            _ = step.gates.goals
        made = {s.output for s in build.steps if s.command.name == "plan"}
        if step.options.get("plan_file") not in made:
            step.command.check(step.arguments, step.where)
    first = build.steps[0]
    if first.takes == ORIGINAL and not Path(first.original).exists():
        raise InputError(f"{build.file}: model {first.original}: no such file")


def planned(build: Build, *, force: bool = False) -> list[tuple[Step, list[str]]]:
    """What a run would do: steps with reasons to run them, none for those that are kept."""
    state = read_state(build.folder / _STATE)
    found: list[tuple[Step, list[str]]] = []
    running: set[str] = set()
    for step in build.steps:
        why = _why(build, step, state, force, running)
        running |= {step.name} if why else set()
        found.append((step, why))
    return found


def execute(build: Build, say: Say, *, force: bool = False) -> list[StepResult]:
    """Run every step that is not up to date. Raises LwqcError that names the step.

    What was done is written down after each step, so that a run which ends early goes on there.
    """
    place = build.folder / _STATE
    state = read_state(place)
    results: list[StepResult] = []
    for step in build.steps:
        why = _why(build, step, state, force, set())
        if why:
            say(f"{step.name}: {step.command.name}: {'; '.join(why)}")
            for path in paths_of(step):
                make_folder(path.parent, step.where)
            record = _run(step)
            # A state that was damaged holds records again, of the steps that ran since.
            state = State(steps={**state.steps, step.name: record}, damage=state.damage)
            _write(place, state)
        else:
            say(f"{step.name}: {step.command.name}: kept, nothing changed")
        record = state.steps[step.name]
        results.append(
            StepResult(step, tuple(why), record, tuple(checked(step.gates, record.answer)))
        )
    return results


def _why(build: Build, step: Step, state: State, force: bool, running: set[str]) -> list[str]:
    """Reasons to run a step. running: steps before it that would run, in a plan of the run."""
    if force:
        return ["--force"]
    sources = {step.takes} | {
        s.name for s in build.steps if s.output == step.options.get("plan_file")
    }
    if waits := sorted(sources & running):
        return [f"step {waits[0]} runs before it; kept if that leaves the same file"]
    code = code_of(step)
    if code and step.depends is None:
        key, spec = next(iter(code.items()))
        return [f"{key} {spec} is Python code; `depends` says which files it reads"]
    return why_again(state.steps.get(step.name), facts(step, _models(step)), state.damage)


def _models(step: Step) -> list[str]:
    """Files that the step reads models from."""
    return list(dict.fromkeys(path for path in (step.original, step.model) if path and step.takes))


def _run(step: Step) -> Record:
    before = facts(step, _models(step))
    code, answer = step.command.call(step.arguments, step.where)
    if code not in (_DONE, _MISSED):
        raise LwqcError(f"{step.where}: ended with exit code {code}")
    now = facts(step, _models(step))
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise InputError(f"{step.where}: {changed[0]} changed while the step ran; run it again")
    outputs = {str(path): file_digest(path) for path in _written(step)}
    plain = finite(json.loads(json.dumps(answer, default=str)))
    return Record(facts=before, outputs=outputs, exit_code=code, answer=plain)


def paths_of(step: Step) -> list[Path]:
    """Files that a step writes under names that are known before."""
    options = (step.options.get(key) for key in WRITTEN)
    return [Path(str(path)) for path in (step.output, *options) if path]


def _written(step: Step) -> Iterator[Path]:
    """Every file that a step left, data files of models included."""
    for path in paths_of(step):
        yield from model_files(path) if path.suffix == ".onnx" else [path]


def _write(place: Path, state: State) -> None:
    write_text(place, state.text)


def _own_missed(step: Step, record: Record) -> list[str]:
    """Bounds of a command's own options that it said are not met."""
    found = record.answer
    if step.command.name == "verify":
        return list(found["missed"])
    return [
        f"{o['name']}: asked {o['asked']:.6g}, reached {o['reached']:.6g} {o['unit']}".rstrip()
        for o in found["outcomes"]
        if not o["met"]
    ]
