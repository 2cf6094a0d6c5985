"""Where a model may read and write: paths named inside a file come from strangers."""

from __future__ import annotations

from pathlib import Path

from lwqc.errors import InputError


def external_file(model: Path, label: str, location: str) -> Path:
    """The file of external data that a model names, checked to lie in the model's folder.

    Refused: no name, absolute paths, `..`, backslashes, and links that lead out of the folder.
    Allowed: links that stay inside, and a model that is itself a link, with its data either beside
    the link or beside the file it points to.

    Raises InputError that starts with `label`.
    """
    if not location:
        raise InputError(f"{label}: its external data names no file")
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts or "\\" in location or "\0" in location:
        raise InputError(f"{label}: its data file {location!r} is outside the model's folder")
    path = model.parent / relative
    if not path.exists():
        raise InputError(f"{label}: its data file {path} does not exist")
    folders = {model.parent.resolve(), model.resolve().parent}
    resolved = path.resolve()
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise InputError(f"{label}: its data file {location!r} is a link out of the model's folder")
    if not resolved.is_file():
        raise InputError(f"{label}: its data file {path} is not a file")
    return path


def link_free(path: Path) -> Path:
    """The file behind a symbolic link, so that replacing it keeps the link."""
    return path.resolve() if path.is_symlink() else path
