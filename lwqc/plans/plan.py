"""The plan: what to change in a model, as plain versioned data.

Analyses, scores and searches only produce a plan; passes only execute one. The same plan on the
same model gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from lwqc.errors import InputError
from lwqc.model.documents import parse_json, read_text
from lwqc.model.saving import write_text
from lwqc.model.told import Told
from lwqc.quant.formats import PATTERN, WeightFormat
from lwqc.quant.methods import Method
from lwqc.quant.side import side_bytes

Format = Annotated[
    WeightFormat,
    BeforeValidator(lambda v: WeightFormat.parse(v) if isinstance(v, str) else v),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^(?:{PATTERN})$"}),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Source(_Model):
    """The model that a plan is for. digest: sha256 of its graph and weights, "" if not taken."""

    digest: str = ""
    name: str = ""


class DataSource(_Model):
    """The data that a plan was made on.

    digest: sha256 of all feeds in their order. name: for readers. given: by the caller, rather than
    random inputs because none was. feeds: how many. shapes: of the first feeds, by input.
    preprocess: how samples became feeds, as `--preprocess` takes it.
    """

    digest: str
    name: str = ""
    given: bool = True
    feeds: int = 0
    shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    preprocess: str = ""


class ActivationRange(_Model):
    """Calibrated range of an activation; the grid always contains 0."""

    low: float
    high: float

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"from {self.low:g} to {self.high:g} there is nothing")
        return self


class _Ranges(dict[str, ActivationRange]):
    def __missing__(self, name: str) -> ActivationRange:
        raise InputError(f"the plan has no range for the activation {name}")


class SiteEntry(_Model):
    """What happens to one weight and to the activation it meets.

    weight: number format of the stored weight.
    activation: `none` (float), `dynamic` (8 bits, range of each run) or `static` (8 bits, range
        from `Plan.activations`).
    search: choose scales by error search rather than from the plain range.
    method: how codes are chosen, see `quant.methods`; `DATA_METHODS` look at the data.
    rank, columns: of a branch in float beside the quantized weight, see `quant.side`; 0: without.
    unpacked: the weight becomes float again when the model is loaded, where the kernel for its
        format is slower than the float one.
    """

    weight: Format
    activation: Literal["none", "dynamic", "static"] = "none"
    search: bool = True
    method: Method = "rtn"
    rank: int = Field(default=0, ge=0)
    columns: int = Field(default=0, ge=0)
    unpacked: bool = False

    @property
    def layout(self) -> str:
        """How the weight lies in a file: its format, and whether nodes beside it unpack it."""
        return f"{self.weight}{' unpacked' if self.unpacked else ''}"

    @property
    def has_side(self) -> bool:
        """Whether there is a branch in float."""
        return bool(self.rank or self.columns)

    @property
    def takes_long(self) -> bool:
        """Whether codes are chosen by more than rounding blocks of weights."""
        return self.method != "rtn" or self.weight.kind == "vq" or self.has_side

    def size_bytes(self, n: int, k: int) -> int:
        """Bytes that a weight [N, K] takes in a file, its branch in float included."""
        return self.weight.size_bytes(n, k) + side_bytes(n, k, self.rank, self.columns)


class SlicedAxis(_Model):
    """Indices that go along one axis of a stored tensor, as it is in the original model.

    reader: the node for which they go, where several read the tensor and may need other slices.
    """

    initializer: str
    axis: int
    indices: tuple[int, ...]
    reader: str = ""


class PrunedUnit(_Model):
    """One channel, head or the like, and every slice that goes with it.

    group: as `lwqc inspect --groups` names it. index: within the group.
    """

    group: str
    index: int
    slices: tuple[SlicedAxis, ...]


class Pruning(_Model):
    """Channels to remove, and how the remaining weights make up for them.

    compensate: `none`, `bias` (restore mean outputs) or `refit` (least squares); both need data.
    batch_norm: re-estimate the statistics of BatchNormalization afterwards.
    calibration: what the compensation saw, the caller's data or random inputs.
    resizable_outputs: graph outputs that may get narrower.
    """

    units: tuple[PrunedUnit, ...]
    compensate: Literal["none", "bias", "refit"] = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"
    resizable_outputs: tuple[str, ...] = ()


Relaxation = Literal["nan-guards", "finite-masks"]
Clip = Literal["relu", "clip"]


class Restore(_Model):
    """Quantized operators become float ones again, see `lwqc.compile.steps.restored`.

    clips: tensors that their codes limited, as a Relu or Clip that the quantizer left out did.
    left: operators that stay as they are, by the name of their first output, and why.
    """

    clips: dict[str, Clip] = Field(default_factory=dict)
    left: dict[str, str] = Field(default_factory=dict)


class CleanUp(_Model):
    """The float graph in fewer and faster operators, see `lwqc.passes.cleanup`.

    fuse: attention as one operator. merge: layers that read the same value as one.
    copies: weights that are read in two ways may be stored in both. experts: those of a mixture
    whose matrices are picked for each token get weights of their own. folding: numbers in the
    largest tensor that is computed beforehand. accept: what is not exact for every input, and was
    checked on data. changes, relaxed: what changed something, and where something else than exactly
    the original is computed, for readers.
    """

    fuse: bool = True
    merge: bool = True
    copies: bool = True
    experts: bool = False
    folding: int = Field(default=1 << 18, ge=0)
    accept: tuple[Relaxation, ...] = ()
    changes: tuple[str, ...] = ()
    relaxed: tuple[str, ...] = ()


Importance = Literal["class", "received", "rank"]


class ReducedTokens(_Model):
    """Behind a branch of self-attention the model goes on with some of its tokens.

    branch: as `lwqc inspect --branches` gives it. keep: how many stay of each sample, those that
    always do included. of: how many there are, for readers. importance: which ones, see
    `lwqc.passes.token_importance`. merge: the last one is the mean of those that go.
    """

    branch: str
    keep: int = Field(ge=1)
    of: int = 0
    importance: Importance = "class"
    merge: bool = False


class FactoredTable(_Model):
    """A table of embeddings that is held as a product of two factors, see `compile.steps.factored`.

    table: site name. rank: columns of the first factor. calibration: how often the `data` takes a
    row says how much it counts; `none`: all count alike.
    """

    table: str
    rank: int = Field(ge=1)
    calibration: Literal["data", "none"] = "data"


class MergedExperts(_Model):
    """Experts of one mixture that become fewer, see `compile.steps.fewer_experts`.

    router: name of the tensor that says which experts are chosen. into: of each expert, the number
    of the one that it becomes part of. shares: how much the weights of each count for that.
    """

    router: str
    into: tuple[Annotated[int, Field(ge=0)], ...]
    shares: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.shares) != len(self.into):
            raise ValueError(f"{self.router}: {len(self.into)} experts, {len(self.shares)} shares")
        if set(self.into) != set(range(len(set(self.into)))) or not self.into:
            raise ValueError(f"{self.router}: experts become those from 0 on, without a gap")
        return self

    @property
    def left(self) -> int:
        """How many experts there are then."""
        return len(set(self.into))


Compensation = Literal["none", "mean", "linear"]


class RemovedBranch(_Model):
    """A residual branch to remove.

    name: as `lwqc inspect --branches` gives it. kind: what it computes, for readers.
    keep_signature: its cache inputs and outputs stay; any entry that says so decides for all.
    compensate: what takes its place, see `lwqc.compile.steps.removed_branches`; other than `none`
    needs data.
    """

    name: str
    kind: str = ""
    keep_signature: bool = False
    compensate: Compensation = "none"


class ParallelPair(_Model):
    """Two branches, one after the other: `second` is to read the stream that `first` reads."""

    first: str
    second: str


class SlicedStream(_Model):
    """A residual stream to be narrowed to its principal components.

    group: as `lwqc inspect --groups` names it. width: of the result. shared: one basis for the
    whole stream; otherwise one for each branch, with matrices in the shortcuts between them.
    calibration: where the components are taken from, the caller's data or random inputs.
    """

    group: str
    width: int = Field(ge=1)
    shared: bool = False
    calibration: Literal["data", "random"] = "data"


class Floats(_Model):
    """The float type to compute in, see `lwqc.passes.convert_floats`.

    keep: node, by the name of its first output -> why it stays in float32. clamp: finite stored
    numbers beyond it are moved to it, and those of the graph inputs `clamped`. boundary: graph
    inputs and outputs get the type as well.
    """

    dtype: Literal["float16", "bfloat16"]
    keep: dict[str, str] = Field(default_factory=dict)
    clamp: float | None = None
    clamped: tuple[str, ...] = ()
    boundary: bool = False


Profile = tuple[int, int, int]


class SparseEntry(_Model):
    """2:4 sparsity of one weight: of every 4 consecutive inputs of an output, 2 are zero.

    method: how the zeros are chosen, see `quant.sparse`; `sparsegpt` looks at the data. refine:
    zeros are exchanged while that lowers the mean error at the output.
    """

    method: Literal["magnitude", "sparsegpt"] = "magnitude"
    refine: bool = False


Parts = Literal["none", "layers", "blocks", "entropy"]


class Learn(_Model):
    """Weights and codes are fitted to the original by gradients, see `lwqc.compile.steps.learned`.

    steps: of each part, and of the whole. lr: share of a weight's size that the largest step
    changes it by. parts: fitted one by one before the whole is, `layers`, residual `blocks` and the
    like, as many blocks whose layers the `entropy` of activations joins, or `none`. rounding: how
    codes of parts are learned, between two neighbours that the original's weight lies between
    (`soft`), or free, with gradients that go `straight` through. whole: the whole is fitted then,
    straight.
    """

    steps: int = Field(default=500, ge=1)
    lr: float = Field(default=0.01, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    parts: Parts = "blocks"
    rounding: Literal["soft", "straight"] = "soft"
    whole: bool = True

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.parts == "none" and not self.whole:
            raise ValueError("neither parts nor the whole are to be learned")
        return self


class Transforms(_Model):
    """Rewrites that leave the outputs: first streams are rotated, then channels scaled.

    rotations: group of a residual stream -> seed of the rotation. scales: span -> what its channels
    are divided by, and the weights that read them multiplied.
    """

    rotations: dict[str, int] = Field(default_factory=dict)
    scales: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.rotations or self.scales)


class Plan(_Model, Told):
    """Everything lwqc will do to one model.

    What is done, in this order. restore: quantized operators become float ones again, see
    `lwqc.compile.steps.restored`. factor: tables of embeddings as products of two factors. merge:
    experts of mixtures that become fewer. tokens: what is left of them, from layer to layer.
    opset: version of the default operator set
    that the model is converted to, None for its own. clean: the graph is cleaned up. remove:
    residual branches. parallel: branches that are fed from the same stream and merged. slice:
    streams that get narrower. prune: channels to remove. transforms: what leaves the outputs as
    they are. sparse: site name -> entry. quantize: site name -> entry.
    activations: tensor name -> range, for static sites. floats: the type to compute in, None for
    the model's own. profile: dynamic dimension -> least, usual and largest size that engines are
    built for.
    rewrites: names of exact graph rewrites the target asked for, in order. learn: weights and codes
    are fitted by gradients, None for not. caches: how keys and values of earlier tokens are stored,
    None for as they are.
    token_weights: methods that look at the data count tokens by how much attention reads them.
    sequential: each layer is quantized for what the quantized layers before it give.
    kept_float: site name -> reason why it stays as it is. untransformed: the same for norms,
    layers and streams that no transform could reach. notes: what else was left undone or done
    otherwise than asked, a line each.
    What it depends on: source, the model; data, None where that was not recorded; tools: package ->
    version. budgets: goal -> what was asked for, for readers.
    Version 1 had no data, tools and budgets; it is read as version 2 without them.
    """

    version: Literal[2] = 2
    source: Source
    data: DataSource | None = None
    tools: dict[str, str] = Field(default_factory=dict)
    target: str = "cpu"
    recipe: str = ""
    budgets: dict[str, str] = Field(default_factory=dict)
    restore: Restore | None = None
    factor: tuple[FactoredTable, ...] = ()
    merge: tuple[MergedExperts, ...] = ()
    tokens: tuple[ReducedTokens, ...] = ()
    opset: int | None = None
    clean: CleanUp | None = None
    remove: tuple[RemovedBranch, ...] = ()
    parallel: tuple[ParallelPair, ...] = ()
    slice: tuple[SlicedStream, ...] = ()
    prune: Pruning | None = None
    transforms: Transforms = Transforms()
    sparse: dict[str, SparseEntry] = Field(default_factory=dict)
    quantize: dict[str, SiteEntry] = Field(default_factory=dict)
    activations: dict[str, ActivationRange] = Field(default_factory=dict)
    floats: Floats | None = None
    profile: dict[str, Profile] = Field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    learn: Learn | None = None
    caches: Literal["int8"] | None = None
    sequential: bool = False
    token_weights: bool = False
    kept_float: dict[str, str] = Field(default_factory=dict)
    untransformed: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def told(self) -> dict[str, str]:
        """What it is for, and how much of what it does."""
        amounts = {
            "times tokens go": len(self.tokens),
            "tables as two factors": len(self.factor),
            "mixtures with fewer experts": len(self.merge),
            "branches removed": len(self.remove),
            "pairs made parallel": len(self.parallel),
            "streams narrowed": len(self.slice),
            "channels removed": 0 if self.prune is None else len(self.prune.units),
            "sites sparse": len(self.sparse),
            "sites quantized": len(self.quantize),
            "sites in float": len(self.kept_float),
            "notes": len(self.notes),
        }
        return {
            "model": self.source.name,
            "target": self.target,
            "recipe": self.recipe,
            **{name: str(count) if count else "" for name, count in amounts.items()},
        }

    __repr__ = Told.__repr__
    __str__ = Told.__repr__

    def noted(self, *notes: str) -> Plan:
        """The plan with more notes, each of them once."""
        return self.model_copy(update={"notes": tuple(dict.fromkeys((*self.notes, *notes)))})

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, given: Any) -> Any:
        newer = {"data", "tools", "budgets"}
        if isinstance(given, dict) and given.get("version") == 1 and not newer & given.keys():
            return {**given, "version": 2}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        beside = next((n for n, e in self.quantize.items() if e.has_side), None)
        if self.sequential and beside is not None:
            raise ValueError(f"{beside}: a side branch cannot be had with sequential calibration")
        both = next((name for name in self.sparse if name in self.quantize), None)
        if both is not None:
            raise ValueError(f"{both}: sparse weights stay float")
        return self

    @property
    def ranges(self) -> Mapping[str, ActivationRange]:
        """`activations`, which raises InputError for one that it does not have."""
        return _Ranges(self.activations)

    @property
    def text(self) -> str:
        """The plan as JSON."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all. Raises InputError."""
        write_text(path, self.text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises InputError when the file is missing or not a valid plan."""
        try:
            text = read_text(path)
        except InputError as error:
            raise InputError(f"{path}: cannot read the plan: {error}") from error
        try:
            return cls.model_validate(parse_json(text))
        except InputError as error:
            raise InputError(f"{path}: not a valid plan: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise InputError(f"{path}: not a valid plan: {where[:200]}: {first['msg']}") from error


def is_plan(path: str | os.PathLike[str]) -> bool:
    """Whether a file is written as a plan is: as JSON, which a model never begins like."""
    try:
        with Path(path).open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
