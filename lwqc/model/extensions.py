"""Things found by name: in files of lwqc, and in installed packages by entry point.

This is how one more score, allocator or target takes one file of lwqc, or none. Nothing is imported
before it is asked for, so that what is below (recipes) can check names of what is above (scores).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lwqc.errors import InputError
from lwqc.model.user_code import load_point, package_of, running_package


def expected(name: str, known: Sequence[str]) -> str:
    """What messages say of a name that is not known: all that are, and the nearest one."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"expected one of {', '.join(known)}{hint}"


@dataclass(frozen=True)
class Registry:
    """All things of one kind by name. A name of lwqc cannot be taken by another package.

    kind: for messages. group: of entry points, each of which names an object. of: its type, as
    `module:name`. package: of lwqc, whose files hold the built-in ones. attribute: of such a file,
    a mapping from names to things; where it is "", each file is one thing, called like the file,
    and held by the attribute `of` in capitals: nothing is imported to know the names.
    """

    kind: str
    group: str
    of: str
    package: str
    attribute: str = ""
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def built_in(self) -> tuple[str, ...]:
        """Names that come with lwqc."""
        if self.attribute:
            return tuple(self._tables)
        return tuple(name.replace("_", "-") for name in self._files())

    def names(self) -> list[str]:
        """Every name, those of lwqc first."""
        return [*self.built_in, *sorted(self.installed())]

    def installed(self) -> Mapping[str, EntryPoint]:
        """Those of other packages, not loaded yet."""
        points = {point.name: point for point in entry_points(group=self.group)}
        return {name: point for name, point in points.items() if name not in self.built_in}

    def __contains__(self, name: object) -> bool:
        """Whether there is a thing of that name."""
        # Other packages are asked for theirs only where that is needed.
        return name in self.built_in or name in self.installed()

    def check(self, name: str) -> None:
        """Raises InputError for an unknown name, with the nearest one."""
        if name not in self:
            known = self.names()
            raise InputError(f"{self.kind} {name!r} is not known; {expected(name, known)}")

    def find(self, name: str) -> Any:
        """The thing of that name. Raises InputError for an unknown one and for a broken package."""
        if name not in self._loaded:
            self.check(name)
            here = name in self.built_in
            self._loaded[name] = self._own(name) if here else self._foreign(name)
        return self._loaded[name]

    def told(self, name: str) -> str:
        """How messages call the thing of that name: `allocator mine (of my-package)`."""
        point = None if name in self.built_in else self.installed().get(name)
        return f"{self.kind} {name}" + (f" (of {package_of(point)})" if point else "")

    def running(self, name: str, where: str = "") -> AbstractContextManager[None]:
        """Around what the thing of that name does, where it may be code of another package.

        where: behind the name in messages. Raises UserCodeError for what such code raises.
        """
        if name in self.built_in:
            return nullcontext()
        return running_package(lambda: f"{self.told(name)}{where}")

    @cached_property
    def _tables(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for name in self._files():
            found |= vars(self._module(name)).get(self.attribute, {})
        return found

    def _files(self) -> list[str]:
        package = importlib.import_module(self.package)
        return sorted(info.name for info in pkgutil.iter_modules(package.__path__))

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")

    def _own(self, name: str) -> Any:
        if self.attribute:
            return self._tables[name]
        attribute = self.of.partition(":")[2].upper()
        return getattr(self._module(name.replace("-", "_")), attribute)

    def _foreign(self, name: str) -> Any:
        point = self.installed()[name]
        where = f"{self.kind} {name}: {point.value}"
        found = load_point(point, where)
        module, _, attribute = self.of.partition(":")
        if not isinstance(found, getattr(importlib.import_module(module), attribute)):
            kind = type(found).__name__
            raise InputError(f"{where} is a {kind}; expected a {attribute} of {module}")
        return found


CHANNEL_SCORES = Registry(
    "channel score",
    group="lwqc.scores.channels",
    of="lwqc.decide.scores.channels.score:ChannelScore",
    package="lwqc.decide.scores.channels",
    attribute="SCORES",
)
BRANCH_SCORES = Registry(
    "branch score",
    group="lwqc.scores.branches",
    of="lwqc.decide.scores.branches.score:BranchScore",
    package="lwqc.decide.scores.branches",
    attribute="SCORES",
)
ALLOCATORS = Registry(
    "allocator",
    group="lwqc.allocators",
    of="lwqc.decide.allocator:Allocator",
    package="lwqc.decide.site_allocators",
)
TARGETS = Registry(
    "target",
    group="lwqc.targets",
    of="collections.abc:Callable",
    package="lwqc.backends",
    attribute="TARGETS",
)
EXTENSIONS = (CHANNEL_SCORES, BRANCH_SCORES, ALLOCATORS, TARGETS)
