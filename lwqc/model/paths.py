"""Where a model may read and write: paths named inside a file come from strangers."""

from __future__ import annotations

from pathlib import Path

from lwqc.errors import InputError


def external_file(model: Path, label: str, location: str) -> Path:
    """The real file of external data that a model names, checked to lie in the model's folder.

    Refused: no name, absolute paths, `..`, backslashes, hard links (they cannot be told from a
    link to somebody else's file) and symbolic links that lead out of the folder.
    Allowed: links that stay inside, and a model that is itself a link, with its data either beside
    the link or beside the file it points to. That is what caches of blobs look like.

    The answer has its links resolved, so a link swapped afterwards changes nothing.
    Raises InputError that starts with `label`.
    """
    if not location:
        raise InputError(f"{label}: its external data names no file")
    if not isinstance(location, str):  # protobuf gives bytes where a string is no UTF-8
        raise InputError(f"{label}: the name of its data file is not valid UTF-8")
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts or "\\" in location or "\0" in location:
        raise InputError(f"{label}: its data file {location!r} is outside the model's folder")
    folders = model_folders(model)
    try:
        for path in (folder / relative for folder in folders):
            if path.exists():
                return _inside(path, folders, label, location)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise InputError(f"{label}: its data file {location[:80]!r} cannot be opened") from error
    raise InputError(
        f"{label}: its data file {model.parent / relative} does not exist; copy it beside the model"
    )


def model_folders(model: Path) -> tuple[Path, ...]:
    """The real folders in which a model's data may lie: the given one and that of the real file."""
    return tuple(dict.fromkeys([model.parent.resolve(), model.resolve().parent]))


def _inside(path: Path, folders: tuple[Path, ...], label: str, location: str) -> Path:
    real = path.resolve()
    if not any(real.is_relative_to(folder) for folder in folders):
        raise InputError(f"{label}: its data file {location!r} is a link out of the model's folder")
    if not real.is_file():
        raise InputError(f"{label}: its data file {path} is not a file")
    if real.stat().st_nlink > 1:
        raise InputError(f"{label}: its data file {path} has several hard links; make a copy of it")
    return real


def link_free(path: Path) -> Path:
    """The file behind a symbolic link, so that replacing it keeps the link."""
    try:
        return path.resolve() if path.is_symlink() else path
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    except RuntimeError as error:
        raise InputError(f"{path}: is a loop of links; choose another output") from error
