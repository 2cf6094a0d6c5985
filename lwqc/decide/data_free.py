"""What recipes become where no data is given: the best of the same kind that needs none.

Random inputs say nothing of which inputs are large or small. On models of ours with the calibration
of real use, activation ranges and scales taken from them are several times worse than what looks at
the weights alone; k-quant is the best of the methods that do.
"""

from __future__ import annotations

from typing import Any

from lwqc.decide.scores.channels.score import channel_score
from lwqc.plans.recipe import PruneRecipe, Recipe
from lwqc.quant.methods import DATA_METHODS

NOTHING_LEARNED = "no data was given: nothing is learned by gradients"
_LOOKING = frozenset({"smoothquant", "awq", "percentile"})  # migrations that need activations


def without_data(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without what looks at data, and what was done instead, a line each."""
    changes: dict[str, Any] = {}
    notes: list[str] = []

    def instead(field: str, value: Any, note: str) -> None:
        changes[field] = value
        notes.append(f"no data was given: {note}")

    if recipe.method in DATA_METHODS:
        books = recipe.format is not None and recipe.format.kind == "vq"
        grained = recipe.format is not None and recipe.format.grained
        plain = recipe.kind == "int" and not books and not grained
        own = recipe.allocator in ("uniform", "rank") and plain
        method = "k-quant" if own else "rtn"
        how = "codebooks are fitted by plain k-means" if books else f"codes are chosen by {method}"
        instead("method", method, f"{how} instead of {recipe.method}")
    if recipe.learn is not None:
        changes["learn"] = None
        notes.append(NOTHING_LEARNED)
    if recipe.sequential:
        instead("sequential", False, "each layer is quantized for itself, not in sequence")
    if recipe.token_weights:
        instead("token_weights", False, "no tokens are counted by how much attention reads them")
    if recipe.activations == "static" and recipe.kind != "int":
        notes.append("no data was given: activation ranges come from random inputs")
    elif recipe.activations == "static":
        instead("activations", "dynamic", "activation ranges are found in each run, not static")
    if recipe.migrate in _LOOKING:
        note = f"scales are moved by weights alone (equalise) instead of {recipe.migrate}"
        instead("migrate", "equalise", note)
    if recipe.sparse not in ("none", "magnitude"):
        instead("sparse", "magnitude", f"zeros by magnitude instead of {recipe.sparse}")
    if recipe.prune is not None and _looks(recipe.prune):
        prune = recipe.prune.model_copy(update={"calibration": "random"})
        instead("prune", prune, "statistics for pruning come from random inputs")
    if recipe.drop is not None and recipe.drop.compensate != "none":
        drop = recipe.drop.model_copy(update={"compensate": "none"})
        instead("drop", drop, "nothing takes the place of removed branches")
    if recipe.slice is not None:
        notes.append("no data was given: the directions that stay come from random inputs")
    return recipe.model_copy(update=changes), tuple(notes)


def _looks(prune: PruneRecipe) -> bool:
    score = channel_score(prune.score)
    taken = prune.compensate != "none" or prune.batch_norm or score.looks_at != "weights"
    return taken and prune.calibration == "data"
