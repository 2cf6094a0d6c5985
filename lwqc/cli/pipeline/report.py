"""The report on a build: what each step was made from, what it left and what it measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lwqc.cli.pipeline.content import tools
from lwqc.cli.pipeline.execution import StepResult
from lwqc.cli.pipeline.steps import Build


def build_report(build: Build, results: Sequence[StepResult]) -> dict[str, Any]:
    """Plain data for JSON.

    Digests are sha256. made_from, tools: everything that would have a step run again.
    """
    known = tools()
    return {
        "format": "lwqc run report",
        "version": 1,
        "file": build.file.name,
        "met": not any(result.missed for result in results),
        "tools": known,
        "steps": [_row(result, known) for result in results],
    }


def _row(result: StepResult, known: dict[str, str]) -> dict[str, Any]:
    step, record = result.step, result.record
    return {
        "name": step.name,
        "command": ["lwqc", step.command.name, *step.arguments],
        "ran": bool(result.why),
        "why": list(result.why),
        "made_from": {n: text for n, text in record.facts.items() if n not in known},
        "outputs": record.outputs,
        "is_output": step.is_output,
        "gates": [gate.to_dict() for gate in result.gates],
        "missed": list(result.missed),
        "report": record.answer,
    }


def report_text(report: dict[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=1) + "\n"
