"""The file of `lwqc run` as it is written: its keys, their types, and nothing looked up yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lwqc.cli.pipeline.spelling import check_known
from lwqc.errors import InputError
from lwqc.model.documents import parse_toml, read_text
from lwqc.plans.goals import Goals

SHARED = (
    "data",
    "preprocess",
    "metric",
    "shape",
    "seed",
    "constant_inputs",
    "keep_metadata",
)  # options of every step


class Gates(BaseModel):
    """What a model must hold to be deployed, as the options of `lwqc compress` of these names.

    Fractions are of the first original, and may be in percent. max_drop: of the metric, else of the
    outputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_size: str | float | None = None
    max_latency: str | float | None = None
    max_drop: str | float | None = None

    def over(self, general: Gates) -> Gates:
        """These, and the general ones for what these do not say."""
        return general.model_copy(update=self.model_dump(exclude_none=True))

    @property
    def goals(self) -> Goals:
        """The bounds. Raises InputError."""
        return Goals(**self.model_dump())


class StepTable(BaseModel):
    """A `[[step]]`. options: of its command, by key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str
    name: str = ""
    takes: str = Field(default="", alias="from")
    output: str = ""
    targets: list[str] = Field(default_factory=list)
    gates: Gates = Gates()
    depends: list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class Document(BaseModel):
    """The whole file. Paths are relative to the folder that it lies in.

    model: that the steps begin with; "" where the first step converts one. folder: for what is no
    output, `NAME.lwqc` by default. report: where the report goes as JSON. depends: files that
    Python code of the steps reads, as patterns; None where that is not said. gates: of every step
    with an `output`. shared: options that go to every step which has them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    model: str = ""
    folder: str = ""
    report: str = ""
    depends: list[str] | None = None
    gates: Gates = Gates()
    step: list[StepTable]
    shared: dict[str, Any] = Field(default_factory=dict)


STEP_KEYS = ("run", "name", "from", "output", "targets", "gates", "depends")
_KEYS = ("version", "model", "folder", "report", "depends", "gates", "step", *SHARED)


def read_document(file: Path) -> Document:
    """The file's content. Raises InputError for anything that does not belong there.

    Options of steps are not looked at yet.
    """
    try:
        text = read_text(file)
    except InputError as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    try:
        table = parse_toml(text)
    except InputError as error:
        raise InputError(f"{file}: not valid TOML: {error}") from error
    _check_keys(table, _KEYS, str(file))
    _check_keys(table.get("gates"), Gates.model_fields, f"{file}: gates")
    steps = table.get("step", [])
    if not (isinstance(steps, list) and steps and all(isinstance(one, dict) for one in steps)):
        raise InputError(f"{file}: has no steps; write each of them under [[step]]")
    for number, one in enumerate(steps, 1):
        _check_keys(one.get("gates"), Gates.model_fields, f"{file}: step {number}: gates")
    shared = {key: table.pop(key) for key in SHARED if key in table}
    table |= {"shared": shared, "step": [_with_options(one) for one in steps]}
    try:
        return Document.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: {where}: {first['msg']}") from error


def _check_keys(table: Any, known: Any, where: str) -> None:
    for key in table if isinstance(table, dict) else ():
        check_known(key, known, where, "key")


def _with_options(table: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in table.items() if key in STEP_KEYS}
    options = {key.replace("-", "_"): v for key, v in table.items() if key not in STEP_KEYS}
    return {**own, "options": options}
