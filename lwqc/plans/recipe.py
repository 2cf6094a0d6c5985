"""Recipes: named compositions of an allocator, a score and formats, as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from lwqc.errors import InputError
from lwqc.model.documents import parse_toml, read_text
from lwqc.model.extensions import ALLOCATORS, BRANCH_SCORES, CHANNEL_SCORES, Registry, expected
from lwqc.model.numerals import count_or_share, share
from lwqc.plans.bounds import CountOrShare
from lwqc.plans.misfits import first_misfit
from lwqc.plans.options import TwoFormats
from lwqc.plans.plan import Compensation, Format, Learn
from lwqc.plans.spelled_out import part
from lwqc.quant.dual_grained import GRAINED_METHODS, not_for_grained
from lwqc.quant.fitted_codebook import CODEBOOK_METHODS, not_for_codebooks
from lwqc.quant.formats import Kind, WeightFormat
from lwqc.quant.methods import METHODS, Method

_BITS = (2, 3, 4, 8)  # of weights, where the user chooses
TRIALS = ("ablation", "metric", "accept")  # of branches: what is left decides what goes next
_NOT_LEARNED = "codes with grained scales are not learned by gradients"
_BEFORE_LEARNING = "descent"  # how codes are chosen that are learned then
# Of `--method`, beside `METHODS`: how codes are learned.
LEARNED = {
    "adaround": Learn(parts="layers", whole=False),
    "brecq": Learn(whole=False),
    "distill": Learn(),
    "qvlm": Learn(parts="entropy", whole=False),
}
_OURS = "comes with lwqc"  # context in which a recipe is read
# Those that decide by a section of their own, or not at all; the others give formats to sites.
_STRUCTURAL = ("auto", "channels", "branches", "parallel", "streams", "search", "none")
_ONE_OR_MANY = ("uniform", "knapsack")  # of formats, which these choose for themselves

# A number, or in percent: 0.3 or "30%".
_WRITTEN = WithJsonSchema({"type": ["number", "string"]})
_Share = Annotated[float, BeforeValidator(share), _WRITTEN]
_CountOrShare = Annotated[float, BeforeValidator(count_or_share), _WRITTEN]


def _one_of(kind: Registry, *more: str) -> AfterValidator:
    """A name that `kind` knows, or one of some more.

    It is not looked up in recipes that come with lwqc, which the tests check: to read those takes
    no score and no allocator.
    """

    def check(name: str, info: ValidationInfo) -> str:
        if info.context != _OURS and name not in more and name not in kind:
            raise ValueError(expected(name, [*more, *kind.names()]))
        return name

    return AfterValidator(check)


class PruneRecipe(BaseModel):
    """How channels are chosen; see `lwqc.decide.prune_options.PruneOptions` for the meaning of each
    field.

    calibration: `data` uses what was given, `random` always N(0, 1) inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: _Share = 0.3
    by: Literal["macs", "parameters", "channels"] = "macs"
    score: Annotated[str, _one_of(CHANNEL_SCORES)] = "l2"
    normalise: Literal["none", "mean", "sum", "max", "lamp", "output"] = "mean"
    scope: Literal["global", "local"] = "global"
    per_cost: bool = False
    max_ratio: _Share = 0.9
    statistics: bool = False
    compensate: Literal["none", "bias", "refit"] = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"


class DropRecipe(BaseModel):
    """Which residual branches go; see `lwqc.decide.drop_layers.DropOptions` for the meaning of each
    field.

    share: of the units, where the user says no count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: _Share | None = None
    kind: Literal["attention", "mlp", "convolution", "other", "any", "block"] = "any"
    score: Annotated[str, _one_of(BRANCH_SCORES, *TRIALS)] = "similarity"
    measure: Literal["js", "kl", "angular", "norm", "channels"] = "js"
    protect: _Share = 0.0
    max_divergence: float | None = None
    max_drop: _Share = 0.0
    finer: bool = False
    compensate: Compensation = "none"


class ParallelRecipe(BaseModel):
    """Which adjacent branches become parallel.

    See `lwqc.decide.parallel_layers.ParallelOptions`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: _Share | None = None
    kind: Literal["attention", "mlp", "convolution", "other", "any"] = "any"
    search: Literal["greedy", "once"] = "greedy"
    measure: Literal["js", "kl", "angular", "norm", "channels"] = "js"
    max_divergence: float | None = None
    faster: bool = True


class SliceRecipe(BaseModel):
    """How narrow residual streams get; see `lwqc.decide.slice_streams.SliceOptions`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: _Share = 0.25
    shared: bool = False
    round_to: int = 8


class TokenRecipe(BaseModel):
    """How many tokens go; see `lwqc.decide.tokens`.

    share: of the products behind the first attention, where the user says none. by_latency: as few
    instead as `--max-latency` needs, where that is asked for. importance: of tokens, see
    `lwqc.passes.token_importance`; `auto` is `class` where the model has a class token, and else
    `rank`. merge: those that go become one, which stays; by default where that loses less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: _Share = Field(default=0.3, gt=0, lt=1)
    by_latency: bool = False
    importance: Literal["auto", "class", "received", "rank"] = "auto"
    merge: bool | None = None
    measure: Literal["auto", "js", "kl", "angular", "norm", "channels"] = "auto"


class EmbeddingRecipe(BaseModel):
    """How narrow tables of embeddings get; see `lwqc.decide.embedding_ranks`.

    rank: of the two factors of each, or below 1 a share of its width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: _CountOrShare = 0.5


class ExpertRecipe(BaseModel):
    """How many experts of a mixture are left; see `lwqc.decide.fewer_experts`.

    keep: of each router, or below 1 a share of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: _CountOrShare = 0.5


class SearchRecipe(BaseModel):
    """What a search over whole plans may choose, and by what it compares; see
    `lwqc.decide.search.joint`.

    kinds: formats of sites, widths of groups, residual branches, and under a latency how many
    tokens the model goes on with. measure: divergence of the outputs, see `OutputDivergence`;
    `auto` is `kl` for logits and `channels` otherwise; with `metric` that of the user decides on
    all of the data. errors: `predicted` from statistics, or of
    each level alone `measured` at the outputs, or at every residual sum too (its `trajectory`).
    start: an exact `knapsack`, dynamic programming over error `curves`, `pairs` of items whose
    interaction is measured, or widths in proportion to `zeroth-order` sensitivities or to block
    `angles`.
    score: by which channels of a group go first; another than `obs` where widths alone are chosen,
    and not by the errors that it predicts. refine: evolution after it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[Literal["format", "width", "branch", "token"], ...] = (
        "format", "width", "branch", "token",
    )  # fmt: skip
    measure: Literal["auto", "metric", "js", "kl", "angular", "norm", "channels"] = "auto"
    errors: Literal["predicted", "measured", "trajectory"] = "predicted"
    start: Literal["knapsack", "curves", "pairs", "zeroth-order", "angles"] = "knapsack"
    score: Annotated[str, _one_of(CHANNEL_SCORES)] = "obs"
    refine: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        told = self.errors != "predicted" or self.start in ("zeroth-order", "angles")
        if self.score != "obs" and (self.kinds != ("width",) or not told):
            raise ValueError(
                f"the score {self.score} says no errors: choose widths alone, with errors measured "
                "or another start"
            )
        if self.start in ("zeroth-order", "angles") and self.kinds != ("width",):
            raise ValueError(f"the start {self.start} chooses widths, and only those")
        return self


class Recipe(BaseModel):
    """How to make a plan.

    allocator: `auto` (fastest, or by budget), `uniform` (one format), `knapsack` (mixed bits under
    a budget), `rank` (two formats by importance under a budget), `bisect` (two formats, the lower
    ones for as many sites as a drop allows), `channels` (prunes as `prune` says), `branches`
    (removes those that `drop` says), `parallel` (feeds adjacent branches from one stream and merges
    them, as `parallel` says), `streams` (narrows residual streams as `slice` says), `search` (all
    kinds under one budget, as `search_in` says; `auto` does so when a budget and data are given).
    clean: the graph is cleaned up first: attention as one operator, and with `merge` layers that
    read the same value as one. The allocator `none` does only that. Recipes with `static`
    activations do so without `merge` in any case.
    sparse: 2:4 sparsity with the allocator `none`, see `quant.sparse`: by magnitude, with zeros
    exchanged afterwards, or with later weights taking up the error.
    search: scales by error search; False takes the plain range of each block.
    method: how codes are chosen, see `quant.methods`; those of `DATA_METHODS` look at the data.
    sequential: each layer is quantized for what the quantized layers before it give.
    migrate: how scales move between activations and weights beforehand, see `quant.migration`.
    rotate: residual streams are rotated beforehand.
    token_weights: methods that look at the data count tokens by how much attention reads them.
    kind: of the uniform format: integers, or 4-bit floats where there is a kernel for them.
    tokens: the model goes on with fewer of them from layer to layer, before formats are chosen.
    embeddings: tables of embeddings become products of two factors, before formats are chosen.
    experts: those of mixtures that are alike become one, before formats are chosen.
    format: the uniform format by its name instead of bits and kind, such as `vq5x2`: codebooks.
    learn: weights and codes are fitted to the original by gradients in the end.
    rank, columns: of a branch in float beside the uniform format, see `quant.side`. columns is a
    count, or below 1 a share of the inputs.
    score: `measured` or `weights` for the knapsack; `lim`, `zd` or `position` for the rank.
    low, high: the two formats of `rank` and `bisect`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str
    source: str = ""
    allocator: Annotated[str, _one_of(ALLOCATORS, *_STRUCTURAL)]
    score: Literal["measured", "weights", "lim", "zd", "position"] = "measured"
    sparse: Literal["none", "magnitude", "exchange", "sparsegpt"] = "none"
    clean: bool = False
    merge: bool = True
    bits: Literal[2, 3, 4, 8] = 8
    activations: Literal["none", "dynamic", "static"] = "none"
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    search: bool = True
    method: Method = "rtn"
    sequential: bool = False
    migrate: Literal["none", "smoothquant", "awq", "percentile", "equalise"] = "none"
    rotate: bool = False
    token_weights: bool = False
    kind: Kind = "int"
    format: Format | None = None
    rank: int = Field(default=0, ge=0)
    columns: _Share = Field(default=0, ge=0)
    low: Format = WeightFormat(4, 32, True, "float16")
    high: Format = WeightFormat(8, 128, True, "float16")
    prune: PruneRecipe | None = None
    drop: DropRecipe | None = None
    parallel: ParallelRecipe | None = None
    slice: SliceRecipe | None = None
    search_in: SearchRecipe | None = None
    tokens: TokenRecipe | None = None
    embeddings: EmbeddingRecipe | None = None
    experts: ExpertRecipe | None = None
    learn: Learn | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.columns > 1 and self.columns % 1:
            raise ValueError(f"columns: expected a count or a share below 1, got {self.columns}")
        if self.kind == "fp8":
            if self.bits != 8 or self.activations != "static":
                raise ValueError("kind fp8 has bits = 8 and static activations")
        elif self.kind != "int" and (self.bits != 4 or self.activations != "none"):
            raise ValueError(f"kind {self.kind} has bits = 4 and float activations")
        sections = {
            "channels": self.prune,
            "branches": self.drop,
            "parallel": self.parallel,
            "streams": self.slice,
        }
        for allocator, section in sections.items():
            if (self.allocator == allocator) != (section is not None):
                raise ValueError(f"the allocator {allocator} goes with its section, and it alone")
        if self.sparse != "none" and self.allocator != "none":
            raise ValueError("sparse goes with the allocator none: sparse weights stay float")
        if self.allocator == "search" and self.search_in is None:
            raise ValueError("the allocator search goes with its section search_in")
        if self.search_in is not None and self.allocator not in ("search", "auto"):
            raise ValueError(f"the allocator {self.allocator} searches nothing")
        beside = self.rank or self.columns
        if self.allocator != "uniform" and (beside or self.kind != "int"):
            raise ValueError("kind, rank and columns are for the allocator uniform")
        self._check_format()
        if self.sequential and beside:
            raise ValueError("rank and columns cannot be had with sequential calibration")
        return self

    def _check_format(self) -> None:
        if self.format is None:
            return
        if self.allocator != "uniform" or self.kind != "int":
            raise ValueError("format is for the allocator uniform, without kind")
        if self.format.grained != (self.activations != "none"):
            raise ValueError(_activations_of(self.format))
        if self.format.grained and self.method not in GRAINED_METHODS:
            raise ValueError(not_for_grained(self.method))
        if self.format.grained and self.learn is not None:
            raise ValueError(_NOT_LEARNED)
        if self.format.kind != "vq":
            return
        if self.method not in CODEBOOK_METHODS:
            raise ValueError(not_for_codebooks(self.method))
        if self.learn is not None:
            raise ValueError("codebooks are not learned by gradients")


def _files() -> list[Traversable]:
    """The files of the recipes that come with lwqc."""
    folder = resources.files("lwqc.plans") / "recipes"
    return sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)


@cache
def named() -> dict[str, Recipe]:
    """All recipes that come with lwqc, by name."""
    recipes = [_parse(f.read_text(), f.name, _OURS) for f in _files()]
    return {recipe.name: recipe for recipe in recipes}


def source_text(name_or_path: str) -> str:
    """The TOML of a recipe as it was written, comments included. Raises InputError."""
    if name_or_path in named():
        texts = (file.read_text() for file in _files())
        return next(t for t in texts if _parse(t, "").name == name_or_path)
    return _read(name_or_path)


def find(name_or_path: str) -> Recipe:
    """A named recipe, or one from a TOML file. Raises InputError."""
    if name_or_path in named():
        return named()[name_or_path]
    return _parse(_read(name_or_path), name_or_path)


def with_formats(recipe: Recipe, formats: TwoFormats) -> Recipe:
    """A recipe that has two formats, with others in their place. Raises InputError."""
    given = {name: text for name, text in formats.items() if text is not None}
    if not given:
        return recipe
    if recipe.allocator in (*_STRUCTURAL, *_ONE_OR_MANY):
        raise InputError(f"--{next(iter(given))}: recipe {recipe.name} has no two formats")
    changed = recipe.model_copy(update={name: _format(name, given[name]) for name in given})
    if changed.low.storage_bits > changed.high.storage_bits:
        raise InputError(f"--low {changed.low} has more bits than --high {changed.high}")
    return changed


def with_token_share(recipe: Recipe, share: float | None) -> Recipe:
    """A recipe with which that share of the tokens' work goes, if any. Raises InputError."""
    if share is None:
        return recipe
    if not 0 < share < 1:
        raise InputError(f"--tokens {share:g}: expected a share above 0 and below 1")
    tokens = (recipe.tokens or TokenRecipe()).model_copy(
        update={"share": share, "by_latency": False}
    )
    return recipe.model_copy(update={"tokens": tokens})


def with_embedding_rank(recipe: Recipe, given: str | float | None) -> Recipe:
    """A recipe with which tables of embeddings get that rank, if any. Raises InputError."""
    if given is None:
        return recipe
    rank = CountOrShare("embedding_rank").read(given)
    return recipe.model_copy(update={"embeddings": EmbeddingRecipe(rank=rank)})


def with_experts(recipe: Recipe, given: str | float | None) -> Recipe:
    """A recipe with which that many experts are left, if any. Raises InputError."""
    if given is None:
        return recipe
    keep = CountOrShare("merge_experts").read(given)
    return recipe.model_copy(update={"experts": ExpertRecipe(keep=keep)})


def without_tokens(recipe: Recipe) -> Recipe:
    """A recipe for a model whose tokens are decided already: no search chooses them again."""
    section = recipe.search_in
    if section is not None:
        kinds = tuple(kind for kind in section.kinds if kind != "token")
        section = section.model_copy(update={"kinds": kinds})
    return recipe.model_copy(update={"tokens": None, "search_in": section})


def as_asked(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """A recipe with what `TwoFormats`, `Shortening`, `Narrowing` and `Relearning` say.

    Raises InputError.
    """
    formats: TwoFormats = part(TwoFormats, options)
    changed = with_token_share(with_formats(recipe, formats), options.get("tokens"))
    changed = with_embedding_rank(changed, options.get("embedding_rank"))
    changed = with_experts(changed, options.get("merge_experts"))
    if not options.get("recover"):
        return changed
    learn = (changed.learn or Learn()).model_copy(update={"whole": True})
    return changed.model_copy(update={"learn": learn})


def _format(option: str, text: object) -> WeightFormat:
    try:
        return WeightFormat.parse(str(text))
    except InputError as error:
        raise InputError(f"--{option}: {error}") from error


def _read(file: str) -> str:
    """The text of a recipe in a file. Raises InputError."""
    path = Path(file)
    if path.suffix != ".toml":
        known = expected(file, list(named()))
        raise InputError(f"recipe {file!r} is not known; a .toml file, or {known}")
    try:
        return read_text(path)
    except InputError as error:
        raise InputError(f"{path}: cannot read the recipe: {error}") from error


def uniform_recipe(
    bits: int,
    activations: str,
    ranges: str,
    search: bool = True,
    method: str = "rtn",
    sequential: bool = False,
    fmt: str | None = None,
) -> Recipe:
    """One format for all sites. Raises InputError for values outside the schema.

    fmt: its name, instead of the bits.
    """
    for option, value, known in (
        ("bits", bits, _BITS),
        ("activations", activations, ("none", "dynamic", "static")),
        ("ranges", ranges, ("minmax", "percentile", "mse", "entropy")),
        ("method", method, (*METHODS, *LEARNED)),
    ):
        if value not in known:
            raise InputError(f"--{option} {value}: {expected(str(value), list(map(str, known)))}")
    learn = LEARNED.get(method)
    chosen = None if fmt is None else _format("format", fmt)
    if chosen is not None and chosen.grained != (activations != "none"):
        raise InputError(f"--activations {activations}: {_activations_of(chosen)}")
    if chosen is not None and chosen.grained:
        if learn is not None:
            raise InputError(f"--method {method}: {_NOT_LEARNED}")
        if method not in GRAINED_METHODS:
            raise InputError(f"--method {method}: {not_for_grained(method)}")
    if chosen is not None and chosen.kind == "vq":
        if not search:
            raise InputError("--no-search: codebooks have no scales that could be searched for")
        if learn is not None:
            raise InputError(f"--method {method}: codebooks are not learned by gradients")
        if method not in CODEBOOK_METHODS:
            raise InputError(f"--method {method}: {not_for_codebooks(method)}")
    return Recipe.model_validate(
        {
            "name": fmt or f"w{bits}-{activations}",
            "description": "one format for all sites",
            "allocator": "uniform",
            "bits": bits,
            "format": chosen,
            "activations": activations,
            "ranges": ranges,
            "search": search,
            "method": method if learn is None else _BEFORE_LEARNING,
            "sequential": sequential,
            "learn": learn,
        }
    )


def _activations_of(fmt: WeightFormat) -> str:
    """What activations a format by its name goes with."""
    if fmt.grained:
        return f"{fmt} weights become integers at load: dynamic or static activations"
    return f"activations of {fmt} weights stay float"


def _parse(text: str, label: str, whose: str = "") -> Recipe:
    try:
        return Recipe.model_validate(parse_toml(text), context=whose)
    except InputError as error:
        raise InputError(f"{label}: not a valid recipe: {error}") from error
    except ValidationError as error:
        raise InputError(f"{label}: {first_misfit(error, Recipe, 'recipe')}") from error
