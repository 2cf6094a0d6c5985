"""The recipes as a list for readers: by the command that takes them, with what each needs."""

from __future__ import annotations

from collections.abc import Iterator

from lwqc.decide.scores.channels.score import ChannelScore
from lwqc.model.extensions import CHANNEL_SCORES
from lwqc.plans.recipe import Recipe, named
from lwqc.quant.methods import DATA_METHODS

# Titles in the order of the list. `compress` takes all of them.
_FORMATS = "number formats: lwqc compress --recipe NAME"
_BUDGETS = "under a budget such as --max-size 25%: lwqc compress --recipe NAME"
_CHANNELS = "removing channels and heads: lwqc prune --recipe NAME"
_LAYERS = "removing layers: lwqc drop --recipe NAME"
_WITH_METRIC = ("metric", "accept")  # scores of branches


def groups() -> dict[str, list[Recipe]]:
    """Title -> recipes, each once."""
    found: dict[str, list[Recipe]] = {_FORMATS: [], _BUDGETS: [], _CHANNELS: [], _LAYERS: []}
    for recipe in named().values():
        found[_title(recipe)].append(recipe)
    return found


def _title(recipe: Recipe) -> str:
    if recipe.prune is not None or recipe.slice is not None:
        return _CHANNELS
    if recipe.drop is not None or recipe.parallel is not None:
        return _LAYERS
    return _BUDGETS if recipe.allocator in ("search", "knapsack") else _FORMATS


def needs(recipe: Recipe) -> list[str]:
    """Options and packages that it is nothing without."""
    return list(_needs(recipe))


def _needs(recipe: Recipe) -> Iterator[str]:
    if _by_metric(recipe):
        yield "--metric"
    if recipe.learn is not None:
        yield "--data"
    if recipe.learn is not None or _looks_at(recipe) == "gradients":
        yield "lwqc[torch]"


def _looks_at(recipe: Recipe) -> str:
    """What a score of channels is made of; "" where the recipe has none."""
    if recipe.prune is None:
        return ""
    score: ChannelScore = CHANNEL_SCORES.find(recipe.prune.score)
    return score.looks_at


def _by_metric(recipe: Recipe) -> bool:
    branches = recipe.drop is not None and recipe.drop.score in _WITH_METRIC
    return branches or (recipe.search_in is not None and recipe.search_in.measure == "metric")


def better_with_data(recipe: Recipe) -> bool:
    """Whether it looks at data where there is any; without it something else is done instead."""
    looks = recipe.method in DATA_METHODS or recipe.migrate not in ("none", "equalise")
    ranges = recipe.activations == "static" or recipe.allocator in ("knapsack", "bisect")
    pruned = recipe.prune is not None and recipe.prune.calibration == "data"
    scored = pruned and _looks_at(recipe) != "weights"
    counted = recipe.embeddings is not None or recipe.experts is not None
    sparse = recipe.sparse == "sparsegpt"
    branches = recipe.drop is not None or recipe.parallel is not None or recipe.slice is not None
    return (
        looks or ranges or scored or counted or sparse or branches or recipe.search_in is not None
    )


def lines(*, sources: bool = False) -> Iterator[str]:
    """The whole list. sources: with the papers that recipes are of."""
    for title, recipes in groups().items():
        yield f"{title}"
        width = max(len(recipe.name) for recipe in recipes)
        for recipe in recipes:
            wanted = needs(recipe)
            told = f"needs {', '.join(wanted)}" if wanted else ""
            if not wanted and better_with_data(recipe):
                told = "looks at --data"
            about = recipe.description.rstrip(".")
            yield f"  {recipe.name:{width}}  {about}{f' [{told}]' if told else ''}"
            if sources and recipe.source:
                yield f"  {'':{width}}  {recipe.source}"
        yield ""
