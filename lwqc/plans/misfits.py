"""What of a document does not fit its schema, in a line with the nearest name that is known."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lwqc.model.extensions import expected


def first_misfit(error: ValidationError, model: type[BaseModel], whole: str) -> str:
    """`prune.ratoi: there is no such key; expected one of ...`.

    model: that the document was to be. whole: how the document is called where no key is at fault.
    """
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    *sections, key = first["loc"] or ("",)
    held = _section(model, sections)
    fields = {} if held is None else held.model_fields
    if first["type"] == "extra_forbidden" and fields:
        return f"{where}: there is no such key; {expected(str(key), list(fields))}"
    if first["type"] == "literal_error" and key in fields:
        known = [str(one) for one in get_args(fields[str(key)].annotation)]
        return f"{where}: {expected(str(first['input']), known)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _section(model: type[BaseModel], path: list[Any]) -> type[BaseModel] | None:
    """The schema of a part of the document; None where it has none of its own."""
    found: type[BaseModel] | None = model
    for name in path:
        field = None if found is None else found.model_fields.get(str(name))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        found = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return found
