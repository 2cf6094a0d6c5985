"""Things found by name: in files of lwqc, and in installed packages by entry point."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lwqc.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """All things of one kind by name.

    kind: for messages, "channel score". group: of entry points, each of which names an object.
    of: its type. package: of lwqc, whose files name theirs in a mapping `attribute`, so that one
    more takes one file. A name of lwqc cannot be taken by another package.
    """

    kind: str
    group: str
    of: type[T]
    package: str
    attribute: str
    _loaded: dict[str, T] = field(default_factory=dict, repr=False)

    def names(self) -> list[str]:
        """Every name, those of lwqc first."""
        return [*self.built_in, *sorted(self.installed)]

    @cached_property
    def built_in(self) -> Mapping[str, T]:
        """Those that come with lwqc."""
        found: dict[str, T] = {}
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{self.package}.{info.name}")
            found |= vars(module).get(self.attribute, {})
        return found

    @property
    def installed(self) -> Mapping[str, EntryPoint]:
        """Those of other packages, not loaded yet."""
        points = {point.name: point for point in entry_points(group=self.group)}
        return {name: point for name, point in points.items() if name not in self.built_in}

    def find(self, name: str) -> T:
        """The thing of that name. Raises InputError for an unknown one and for a broken package."""
        if name in self.built_in:
            return self.built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> T:
        self.check(name)
        point = self.installed[name]
        try:
            found: Any = point.load()
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.kind} {name}: {point.value} cannot be loaded: {reason}"
            ) from error
        if not isinstance(found, self.of):
            raise InputError(
                f"{self.kind} {name}: {point.value} is a {type(found).__name__}; expected "
                f"{self.of.__module__}.{self.of.__qualname__}"
            )
        return found

    def check(self, name: str) -> None:
        """Raises InputError for an unknown name, with the nearest one."""
        known = self.names()
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{self.kind} {name!r} is not known: expected one of {', '.join(known)}{hint}"
            )
