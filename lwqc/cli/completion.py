"""What a shell offers where an option takes a name (`lwqc --install-completion`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

Values = Callable[[str], list[str]]
# Of the many that `--format` reads, those that the guides speak of.
FORMATS = (
    "w8c", "w8b32", "w4b32", "w4b32h", "w4b64ah", "w3b32hd", "w2b32h", "nf4b64", "fp4b32", "fp8c",
    "fp16", "dgw8b32", "e2m1w8b32", "vq8x4", "vq6x2", "vq5x2",
)  # fmt: skip


def _offered(known: Callable[[], Iterable[str]]) -> Values:
    """Those that begin as what was typed; they are looked up when a shell asks."""

    def offered(begun: str) -> list[str]:
        return [name for name in known() if name.startswith(begun)]

    return offered


def _recipes() -> Iterable[str]:
    from lwqc.plans.recipe import named

    return named()


def _pruning_recipes() -> Iterable[str]:
    from lwqc.plans.recipe import named

    return [r.name for r in named().values() if r.prune is not None or r.slice is not None]


def _dropping_recipes() -> Iterable[str]:
    from lwqc.plans.recipe import named

    wanted = ("drop", "parallel", "tokens")
    return [r.name for r in named().values() if any(getattr(r, part) for part in wanted)]


def _targets() -> Iterable[str]:
    from lwqc.model.extensions import TARGETS

    return TARGETS.names()


def _metrics() -> Iterable[str]:
    from lwqc.runtime.metrics.named import NAMED

    return NAMED


def _channel_scores() -> Iterable[str]:
    from lwqc.model.extensions import CHANNEL_SCORES

    return CHANNEL_SCORES.names()


def _branch_scores() -> Iterable[str]:
    from lwqc.model.extensions import BRANCH_SCORES
    from lwqc.plans.recipe import TRIALS

    return [*BRANCH_SCORES.names(), *TRIALS]


def _methods() -> Iterable[str]:
    from lwqc.plans.recipe import LEARNED
    from lwqc.quant.methods import METHODS

    return [*METHODS, *LEARNED]


def _field(section: str, name: str) -> Values:
    """What a field of a recipe may be."""

    def known() -> Iterable[str]:
        from lwqc.plans import recipe

        return get_args(getattr(recipe, section).model_fields[name].annotation)

    return _offered(known)


def _efforts() -> Iterable[str]:
    from lwqc.plans.options import Effort

    return get_args(Effort)


def _passes() -> Iterable[str]:
    from lwqc.passes.catalogue import catalogue

    return [entry.name for entry in catalogue()]


def _one_more_pass(begun: str) -> list[str]:
    """The last of several, divided by commas."""
    before, comma, last = begun.rpartition(",")
    return [f"{before}{comma}{name}" for name in _offered(_passes)(last)]


# By option, or by command and option where commands differ.
VALUES: dict[str, Values] = {
    "recipe": _offered(_recipes),
    "prune recipe": _offered(_pruning_recipes),
    "drop recipe": _offered(_dropping_recipes),
    "target": _offered(_targets),
    "metric": _offered(_metrics),
    "method": _offered(_methods),
    "prune score": _offered(_channel_scores),
    "drop score": _offered(_branch_scores),
    "prune by": _field("PruneRecipe", "by"),
    "prune scope": _field("PruneRecipe", "scope"),
    "prune normalise": _field("PruneRecipe", "normalise"),
    "prune compensate": _field("PruneRecipe", "compensate"),
    "drop kind": _field("DropRecipe", "kind"),
    "drop measure": _field("DropRecipe", "measure"),
    "drop compensate": _field("DropRecipe", "compensate"),
    "activations": _field("Recipe", "activations"),
    "ranges": _field("Recipe", "ranges"),
    "format": _offered(lambda: FORMATS),
    "effort": _offered(_efforts),
    "passes": _one_more_pass,
    "pass": _offered(_passes),
}
