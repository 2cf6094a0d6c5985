"""Recipes: named compositions of an allocator, a score and formats, as TOML."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lwqc.errors import InputError
from lwqc.plan import Format
from lwqc.quant.formats import BITS, WeightFormat
from lwqc.quant.methods import METHODS, Method


class PruneRecipe(BaseModel):
    """How channels are chosen; see `lwqc.prunable.PruneOptions` for the meaning of each field.

    calibration: `data` uses what was given, `random` always N(0, 1) inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = 0.3
    by: Literal["macs", "parameters", "channels"] = "macs"
    score: Literal["l1", "l2", "fpgm", "wanda", "obs", "ablation", "taylor"] = "l2"
    normalise: Literal["none", "mean", "sum", "max", "lamp", "output"] = "mean"
    scope: Literal["global", "local"] = "global"
    per_cost: bool = False
    max_ratio: float = 0.9
    statistics: bool = False
    compensate: Literal["none", "bias", "refit"] = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"


class Recipe(BaseModel):
    """How to make a plan.

    allocator: `auto` (fastest, or by budget), `uniform` (one format), `knapsack` (mixed bits under
    a budget), `rank` (two formats by importance under a budget), `channels` (prunes as `prune`
    says).
    search: scales by error search; False takes the plain range of each block.
    method: how codes are chosen, see `quant.methods`; those of `DATA_METHODS` look at the data.
    sequential: each layer is quantized for what the quantized layers before it give.
    score: `measured` or `weights` for the knapsack; `lim`, `zd` or `position` for the rank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str
    source: str = ""
    allocator: Literal["auto", "uniform", "knapsack", "rank", "channels"]
    score: Literal["measured", "weights", "lim", "zd", "position"] = "measured"
    bits: Literal[2, 3, 4, 8] = 8
    activations: Literal["none", "dynamic", "static"] = "none"
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    search: bool = True
    method: Method = "rtn"
    sequential: bool = False
    low: Format = WeightFormat(4, 32, True, "float16")
    high: Format = WeightFormat(8, 128, True, "float16")
    prune: PruneRecipe | None = None


@cache
def named() -> dict[str, Recipe]:
    """All recipes that come with lwqc, by name."""
    folder = resources.files("lwqc") / "recipes"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    recipes = [_parse(f.read_text(), f.name) for f in files]
    return {recipe.name: recipe for recipe in recipes}


def find(name_or_path: str) -> Recipe:
    """A named recipe, or one from a TOML file. Raises InputError."""
    if name_or_path in named():
        return named()[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            return _parse(path.read_text(), name_or_path)
        except OSError as error:
            raise InputError(f"{path}: cannot read the recipe: {error.strerror}") from error
    known = ", ".join(named())
    raise InputError(f"recipe {name_or_path!r} is not known; expected a .toml file or {known}")


def uniform_recipe(
    bits: int,
    activations: str,
    ranges: str,
    search: bool = True,
    method: str = "rtn",
    sequential: bool = False,
) -> Recipe:
    """One format for all sites. Raises InputError for values outside the schema."""
    for option, value, known in (
        ("bits", bits, BITS),
        ("activations", activations, ("none", "dynamic", "static")),
        ("ranges", ranges, ("minmax", "percentile", "mse", "entropy")),
        ("method", method, METHODS),
    ):
        if value not in known:
            expected = ", ".join(map(str, known))
            raise InputError(f"--{option} {value}: expected one of {expected}")
    return Recipe.model_validate(
        {
            "name": f"w{bits}-{activations}",
            "description": "one format for all sites",
            "allocator": "uniform",
            "bits": bits,
            "activations": activations,
            "ranges": ranges,
            "search": search,
            "method": method,
            "sequential": sequential,
        }
    )


def _parse(text: str, label: str) -> Recipe:
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{label}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise InputError(f"{label}: {where}: {first['msg']}") from error
