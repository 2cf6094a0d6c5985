"""What a shell offers where an option takes a name (`lwqc --install-completion`)."""

from __future__ import annotations

from collections.abc import Callable


def _recipes(begun: str) -> list[str]:
    from lwqc.plans.recipe import named

    return [name for name in named() if name.startswith(begun)]


def _targets(begun: str) -> list[str]:
    from lwqc.model.extensions import TARGETS

    return [name for name in TARGETS.names() if name.startswith(begun)]


def _metrics(begun: str) -> list[str]:
    from lwqc.runtime.metrics.named import NAMED

    return [name for name in NAMED if name.startswith(begun)]


# By option: names that begin as what was typed.
VALUES: dict[str, Callable[[str], list[str]]] = {
    "recipe": _recipes,
    "target": _targets,
    "metric": _metrics,
}
