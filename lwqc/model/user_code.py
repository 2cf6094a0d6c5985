"""Python callables that a user names on the command line as `module:callable`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any

from lwqc.errors import InputError, LwqcError, UserCodeError

_FILE = ".py"
_allowed = [True]
_files: set[str] = set()


def allow() -> None:
    """From now on callables may be loaded."""
    _allowed[0] = True


def forbid(forbidden: bool) -> None:
    """From now on no callables are loaded, if that is asked for."""
    if forbidden:
        _allowed[0] = False


def loaded_files() -> list[str]:
    """Files of the modules that callables came from, and of what those imported."""
    return sorted(_files)


@contextmanager
def running(what: str) -> Iterator[None]:
    """Run the user's code. What it raises, SystemExit too, is a UserCodeError that starts so."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{what}: {line_of(error)}") from error


@contextmanager
def running_package(what: Callable[[], str]) -> Iterator[None]:
    """Run code of an installed package. what: gives its kind, name and package.

    Raises UserCodeError for what it raises. Refusals of its own are told under its name; results
    that do not hold and memory that is out keep their meaning.
    """
    try:
        yield
    except InputError as error:
        raise UserCodeError(f"{what()}: {error}") from error
    except (LwqcError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{what()} failed: {line_of(error)}") from error


def load_point(point: EntryPoint, where: str) -> Any:
    """The object that an entry point names. Raises UserCodeError that starts with `where`."""
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        plain = isinstance(error, (ImportError, AttributeError))
        reason = " ".join(str(error).split())[:200] if plain else line_of(error)
        raise UserCodeError(f"{where} cannot be loaded: {reason}") from error


def package_of(point: EntryPoint) -> str:
    """The package that an entry point comes from, or its module where none is noted."""
    return point.dist.name if point.dist else point.module


def line_of(error: BaseException) -> str:
    """An error of the user's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def check_allowed(what: str) -> None:
    """Raises InputError where no code of others is to run. what: holds or names some."""
    if not _allowed[0]:
        raise InputError(f"{what}: names Python code, which --no-user-code does not run")


def load_callable(spec: str) -> Callable[..., Any]:
    """The callable that `spec` names; the current directory is importable.

    Raises InputError in one line that starts with `spec`.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise InputError(f"{spec}: expected module:callable")
    if module_name.endswith(_FILE):
        dotted = module_name.removesuffix(_FILE).replace("/", ".")
        raise InputError(f"{spec}: modules are named without {_FILE}: write {dotted}:{name}")
    check_allowed(spec)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    before = set(sys.modules)
    with running(f"{spec}: module {module_name} cannot be imported"):
        module = importlib.import_module(module_name)
    for one in (module, *(sys.modules.get(name) for name in set(sys.modules) - before)):
        if isinstance(file := getattr(one, "__file__", None), str):
            _files.add(file)
    found = getattr(module, name, None)
    if found is None:
        raise InputError(f"{spec}: module {module_name} has no attribute {name}")
    if not callable(found):
        raise InputError(f"{spec}: {name} is not callable")
    return found  # type: ignore[no-any-return]
