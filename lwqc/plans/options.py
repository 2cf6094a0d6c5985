"""The options of jobs, each defined once: for keywords in Python and for the command line.

A function takes them as `**options: Unpack[Opening]`, see `lwqc.plans.spelled_out`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from lwqc.model.user_code import load_callable
from lwqc.plans.bounds import BYTES, COUNT, MILLISECONDS, Bound, CountOrShare, Number, Share
from lwqc.plans.option_texts import (
    parse_bounds,
    parse_memory,
    parse_shapes,
    parse_shares,
    parse_weights,
)
from lwqc.plans.preprocess import Preprocess

Sizes = Mapping[str, int]  # of dynamic dimensions
Shapes = Sizes | Sequence[Sizes] | None
Data = str | os.PathLike[str] | Iterable[Any] | None
Preparation = str | os.PathLike[str] | Mapping[str, Any] | Preprocess | None
MetricSource = str | Callable[..., float] | None
Progress = Callable[[str, int, int], None]
Effort = Literal["low", "medium", "high"]
KvCache = Literal["int8"]


@dataclass(frozen=True)
class Flag:
    """How the command line takes an option; an option without one is for Python alone.

    help: what `--help` says. kind: type of the value there; one with None where nothing is the
    default. default: value where nothing is given. spelled: name there, where it is another one.
    read: makes Python's value of the one that was given. names: where they are not the option's
    own. callback: called with the value as soon as it is read.
    """

    help: str
    kind: Any = str | None
    default: Any = None
    spelled: str = ""
    read: Callable[[Any], Any] | None = None
    names: tuple[str, ...] = ()
    callback: Callable[[Any], Any] | None = None


class Shaped(TypedDict, total=False):
    """Sizes of dynamic dimensions.

    shapes: those that the model will serve, one set or several.
    """

    shapes: Annotated[
        Shapes,
        Flag(
            "sizes of dynamic dimensions, batch=8,seq=128; again for each shape served",
            list[str] | None,
            spelled="shape",
            read=parse_shapes,
        ),
    ]


class Prepared(TypedDict, total=False):
    """What a model is run on.

    data: as `--data`, or an iterable of feeds (input name -> array), of samples with labels, a
    DataLoader, a `datasets` object or an array. preprocess: how samples become inputs, see
    `lwqc.plans.preprocess`.
    """

    data: Annotated[
        Data,
        Flag(
            ".npz, .npy, .csv, .parquet, .txt, .wav, images, a folder of them, module:callable "
            "or random[:N]"
        ),
    ]
    preprocess: Annotated[
        Preparation, Flag("size=224,mean=...,std=...,letterbox or a .toml, see docs/data.md")
    ]


class Feeding(Shaped, Prepared, total=False):
    """The same, at sizes that are chosen. seed: of random data, and of a search."""

    seed: Annotated[int, Flag("seed of random data", int, 0)]


class Targeted(TypedDict, total=False):
    """What a model is compressed for.

    target: see `lwqc extensions`.
    """

    target: Annotated[
        str | None,
        Flag(
            "cpu (this one), cpu-vnni, cpu-avx2, cpu-arm, cuda, openvino, coreml, qnn, tensorrt, "
            "tensorrt-10, tensorrt-11, tensorrt-rtx, web or webgpu",
            str,
            "cpu",
        ),
    ]


class Measured(TypedDict, total=False):
    """What a model is measured by.

    metric: a name in `lwqc.runtime.metrics.named.NAMED`, `module:function`, or a callable that gets
    `run(feeds) -> outputs` and returns a number; a callable with the attribute
    `higher_is_better = False` is a loss. weight_outputs: output -> what its loss is multiplied by,
    1 where nothing is said; with 0 it does not count.
    """

    metric: Annotated[
        MetricSource,
        Flag(
            "top1, detection-agreement, map, map50, character-error, word-error, perplexity, "
            "embedding-recall or module:function(run) -> number; see docs/data.md"
        ),
    ]
    weight_outputs: Annotated[
        Mapping[str, float],
        Flag(
            "how much the loss of outputs counts, scores=2,boxes=0.5,aux=0",
            list[str] | None,
            read=parse_weights,
        ),
    ]


class Caching(TypedDict, total=False):
    """How a decoder stores keys and values of earlier tokens.

    kv_cache: int8, in which its inputs and outputs for them are then; None for as they are.
    """

    kv_cache: Annotated[
        KvCache | None, Flag("int8: keys and values of earlier tokens in 8 bits", str | None)
    ]


class JobOptions(Targeted, Caching, Measured, Feeding, total=False):
    """What a model is compressed for, and on what."""


class Constant(TypedDict, total=False):
    """How the inputs of a file are read.

    constant_inputs: inputs with a default value, which callers may override, are constants.
    """

    constant_inputs: Annotated[
        bool, Flag("inputs with a default value cannot be overridden", bool, False)
    ]


class Kept(TypedDict, total=False):
    """What of a file is nothing of the model's, and stays all the same.

    keep_metadata: what exporters write for themselves, see `lwqc.model.metadata`.
    """

    keep_metadata: Annotated[
        bool, Flag("keep stack traces, source paths and the like of exporters", bool, False)
    ]


class Confined(TypedDict, total=False):
    """How much memory the work may take.

    memory: "8GB" or bytes, of this process and the one that runs what is unproven, mapped files
    included; the model is then worked on in parts, see `lwqc.runtime.parts`. None for no bound.
    """

    memory: Annotated[
        str | int | None,
        Flag("most memory that the work takes, 8GB: part by part of the model", read=parse_memory),
    ]


class Opening(JobOptions, Constant, Kept, Confined, total=False):
    """What a model is opened with."""


class Reading(Constant, total=False):
    """How a model that is no ONNX file is read.

    example_inputs, dynamic_shapes: of a torch module, see `lwqc.frontends.torch.export`; the former
    also of JAX functions, of TorchScript, and of scikit-learn's models. trust_code: load a file
    that may hold code, such as a pickle. task: of a folder of Hugging Face's.
    """

    example_inputs: Any
    dynamic_shapes: Any
    trust_code: bool
    task: str


class Sources(Opening, Reading, total=False):
    """What a model is opened with in Python.

    progress: called with the stage, what is done of it and all of it. Where nothing is given, a
    notebook shows a line; False for none.
    """

    progress: Progress | Literal[False] | None


class Loss(TypedDict, total=False):
    """What the result may lose.

    max_drop: of the metric, else of what the outputs lose, see `Divergence.drop`. max_class_drop:
    share of the samples of any class that may no longer be decided right, with the metric top1.
    """

    max_drop: Annotated[
        str | float | None,
        Flag("allowed loss: of the metric, else of the outputs", float | None),
        Share("max-drop"),
    ]
    max_class_drop: Annotated[
        str | float | None,
        Flag("samples that any class may lose, with --metric top1: 5%", float | None),
        Share("max-class-drop"),
    ]


class OutputBounds(TypedDict, total=False):
    """What single outputs may lose.

    bound_outputs: output -> what it may lose, beside `max_drop` for the others; see
    `lwqc.plans.output_bounds`.
    """

    bound_outputs: Annotated[
        Mapping[str, str | float] | None,
        Flag(
            "what single outputs may lose, where that is not --max-drop: boxes=5%,scores=0.5%",
            list[str] | None,
            read=parse_bounds,
        ),
    ]


class Storage(Loss, total=False):
    """What may be stored.

    max_size: 0.25 (of the first original) or "20MB". avg_bits: stored bits per weight.
    """

    max_size: Annotated[
        str | float | None,
        Flag("0.25 of the original, or 20MB"),
        Bound("size", BYTES, "a size such as 20MB"),
    ]
    avg_bits: Annotated[
        float | None, Flag("stored bits per weight", float | None), Number("avg-bits", most=32)
    ]


class Budgets(Storage, total=False):
    """What the result may cost. Each bound is a file in `lwqc.decide.budgets`.

    max_latency: 0.5 (of the first original) or "8ms". max_macs: 0.5 or "300M". max_memory: 0.5 or
    "200MB", of a process that loads and runs the model, beside what it takes without one.
    max_activations: 0.5 or "256kB", the most that nodes have written and that is still to be read.
    With `max_drop` and without a budget the smallest model within it is made, or with `fastest`
    the fastest.
    """

    max_latency: Annotated[
        str | float | None,
        Flag("0.5 of the original, or 8ms"),
        Bound("latency", MILLISECONDS, "a time such as 8ms"),
    ]
    max_macs: Annotated[
        str | float | None,
        Flag("0.5 of the original's products, or 300M"),
        Bound("macs", COUNT, "a number such as 300M"),
    ]
    max_memory: Annotated[
        str | float | None,
        Flag("0.5 of what a process with the original takes, or 200MB"),
        Bound("memory", BYTES, "a size such as 200MB"),
    ]
    max_activations: Annotated[
        str | float | None,
        Flag("0.5 of what the original's nodes write that is needed at once, or 256kB"),
        Bound("activations", BYTES, "a size such as 256kB"),
    ]
    fastest: Annotated[bool, Flag("with --max-drop: the fastest, not the smallest", bool, False)]


class Shortening(TypedDict, total=False):
    """How many tokens vision transformers and encoders go on with.

    tokens: share of the products behind the first attention that goes, see `lwqc.decide.tokens`.
    """

    tokens: Annotated[
        str | float | None,
        Flag(
            "share of the work of transformer layers that goes with the tokens read least: 30%",
            float | None,
        ),
        Share("tokens"),
    ]


class Narrowing(TypedDict, total=False):
    """How narrow tables of embeddings get.

    embedding_rank: of the two factors that a table becomes, or below 1 a share of its width, see
    `lwqc.decide.embedding_ranks`.
    """

    embedding_rank: Annotated[
        str | float | None,
        Flag(
            "tables of embeddings become products of two factors of this rank: 96, or 25% of width",
            float | None,
        ),
        CountOrShare("embedding_rank"),
    ]


class Spread(TypedDict, total=False):
    """Which machines work, beside this one.

    cluster: address of a Dask scheduler: its workers evaluate candidates of a search, and encode
    the weights of the result, see `lwqc.compile.encoded_on_cluster`.
    """

    cluster: Annotated[
        str,
        Flag(
            "address of a Dask scheduler: its workers evaluate candidates, encode weights", str, ""
        ),
    ]


class Searching(Spread, total=False):
    """How a search under a budget runs, see `lwqc.decide.search.control.SearchControl`.

    time_limit: seconds.
    """

    effort: Annotated[Effort, Flag("of a search: low, medium or high", str, "medium")]
    time_limit: Annotated[
        float | None, Flag("seconds of a search; then the best so far", float | None)
    ]
    workers: Annotated[
        int | None,
        Flag("processes that evaluate candidates (default: where they pay)", int | None),
    ]


class Resizable(TypedDict, total=False):
    """Outputs that may get narrower, by name."""

    resizable_outputs: Annotated[
        Sequence[str],
        Flag(
            "output that may get narrower",
            list[str] | None,
            spelled="resizable_output",
            read=lambda names: tuple(names) or None,
        ),
    ]


class Pruning(Resizable, total=False):
    """Fields of `lwqc.decide.prune_options.PruneOptions` that a caller chooses.

    shared: of `lwqc.decide.slice_streams.SliceOptions`.
    """

    ratio: Annotated[
        str | float | None,
        Flag("share of the MACs that goes (or of what --by says)", float | None),
        Share("ratio"),
    ]
    by: Annotated[str, Flag("macs, parameters, or channels (the same share of every group)")]
    score: Annotated[
        str,
        Flag(
            "l1, l2, fpgm, wanda, cfsp, obs, ablation, taylor, fisher, chita, snip, grasp, lrp "
            "or your own"
        ),
    ]
    scope: Annotated[str, Flag("global: cheapest of the model; local: same share everywhere")]
    normalise: Annotated[str, Flag("between groups: none, mean, sum, max or lamp")]
    compensate: Annotated[str, Flag("none, bias or refit (least squares), on the data")]
    groups: Annotated[
        Mapping[str, str | float] | None,
        Flag(
            "GROUP=share for one group or pattern",
            list[str] | None,
            spelled="group",
            read=parse_shares,
        ),
    ]
    round_to: Annotated[int, Flag("keep widths multiples of this", int | None)]
    min_channels: Annotated[int, Flag("each group keeps at least this many", int | None)]
    statistics: Annotated[bool, Flag("also groups that a normalisation mixes", bool | None)]
    loss: Annotated[
        Callable[..., float],
        Flag("module:function(outputs, feeds) -> number, for scores with one", read=load_callable),
    ]
    shared: bool
    per_cost: bool
    max_ratio: Annotated[str | float, Share("max_ratio")]
    batch_norm: bool
    calibration: str


class Dropping(Shortening, total=False):
    """Fields of `lwqc.decide.drop_layers.DropOptions` that a caller chooses.

    search, faster: of `lwqc.decide.parallel_layers.ParallelOptions`.
    """

    count: int | None
    share: Annotated[str | float | None, Share("share")]
    kind: Annotated[str, Flag("attention, mlp, convolution, other, any, or block for whole blocks")]
    score: Annotated[
        str,
        Flag(
            "similarity, lim, angular, norm-ratio or void (one pass); ablation, ablation-once "
            "or metric (trials); accept (whatever may go); random"
        ),
    ]
    measure: Annotated[str, Flag("of the outputs' divergence: js, kl, angular, norm or channels")]
    compensate: Annotated[
        str, Flag("none, mean, or linear (the layer before takes over), on the data")
    ]
    keep_first: Annotated[int, Flag("that many at the start stay", int | None)]
    keep_last: Annotated[int, Flag("that many at the end stay", int | None)]
    protect: Annotated[
        str | float,
        Flag("share at the start that trials spare at first", float | None),
        Share("protect"),
    ]
    max_divergence: Annotated[
        float | None, Flag("removals that would exceed it are not made", float | None)
    ]
    keep_signature: Annotated[bool, Flag("cache inputs and outputs stay", bool | None)]
    search: str
    faster: bool


class Recovering(Feeding, Constant, Kept, total=False):
    """How a model is fitted to another one, see `lwqc.compile.recover`.

    steps: 1000, or as many as the time allows. time_limit: seconds. lr: share of a weight's size
    that the largest step changes it by. parts: `layers`, `blocks` such as residual ones, or as many
    blocks cut by `entropy`, are fitted to the teacher's one by one before the whole is, or `none`;
    None: blocks where weights are codes. loss: of outputs (tensors of torch by name) and feeds for
    the whole, in place of the distance from the teacher's outputs, which may grow: the report tells
    it. inner: names of tensors that both models have; of a narrower one each channel is fitted to
    the one of the teacher's that it resembles most. logits: names of outputs whose channels are
    logits of classes: they are fitted by the divergence of their probabilities from the teacher's.
    low_rank: matrices of floats move by products of that rank, which are added to them in the end,
    and codes stay. less_memory: what lies between two blocks is computed again for the gradients,
    not kept; where memory is short that is done anyway. checkpoint: a file that the state of the
    fit goes to, on the command line OUTPUT.recover. resume: go on with the state that is there.
    """

    steps: Annotated[
        int | None,
        Flag("steps of the fit (default: 1000, or all that the time allows)", int | None),
    ]
    time_limit: Annotated[float | None, Flag("seconds of the fit", float | None)]
    parts: Annotated[
        str | None,
        Flag(
            "none, layers, blocks or entropy, fitted before the whole (default: blocks with codes)"
        ),
    ]
    lr: Annotated[
        str | float,
        Flag("share of a weight's size that the largest step changes it by", float, 0.01),
        Share("lr"),
    ]
    loss: Annotated[
        Callable[..., Any],
        Flag("module:function(outputs, feeds) -> torch number, instead", read=load_callable),
    ]
    inner: Annotated[
        Sequence[str],
        Flag("inner tensor of both models that is fitted too", list[str] | None, read=tuple),
    ]
    logits: Annotated[
        Sequence[str],
        Flag("output of logits: its probabilities are fitted", list[str] | None, read=tuple),
    ]
    low_rank: Annotated[
        int | None, Flag("move matrices by updates of this rank alone; codes stay", int | None)
    ]
    less_memory: Annotated[
        bool, Flag("compute twice what gradients need between blocks", bool, False)
    ]
    checkpoint: str | os.PathLike[str] | None
    resume: Annotated[
        bool, Flag("go on with a fit that was killed, from OUTPUT.recover", bool, False)
    ]


class RecoveringSources(Recovering, Reading, total=False):
    """Options of `lwqc.recover`.

    progress: as of `Sources`.
    """

    progress: Progress | Literal[False] | None


class TwoFormats(TypedDict, total=False):
    """The formats of recipes that have two, in place of the recipe's own: `w2b32h`, `w8c`.

    low: of what matters less. high: of what matters more.
    """

    low: Annotated[str | None, Flag("format of what matters less, of recipes with two: w2b32h")]
    high: Annotated[str | None, Flag("format of what matters more, of recipes with two: w4b32h")]


class Relearning(TypedDict, total=False):
    """Whether the result is fitted to the original in the end.

    recover: by gradients, on `data`, as the step `learn` of the plan. With `time_limit` a search
    has half of it, and the fit all that is left then, at least a quarter.
    """

    recover: Annotated[
        bool, Flag("then fit the result to the original by gradients, on --data", bool, False)
    ]


class Merging(TypedDict, total=False):
    """How many experts of a mixture are left.

    merge_experts: of each router, or below 1 a share of them: those that are alike become one, see
    `lwqc.decide.fewer_experts`.
    """

    merge_experts: Annotated[
        str | float | None,
        Flag(
            "experts of each router that are left, the others are merged: 4, or 50%", float | None
        ),
        CountOrShare("merge_experts"),
    ]


class Deciding(
    Budgets, OutputBounds, Searching, Relearning, Shortening, Narrowing, Merging, TwoFormats,
    total=False,
):  # fmt: skip
    """What a plan is decided by."""


class Encoding(Sources, Spread, total=False):
    """Options of `lwqc.apply`."""


class Quantizing(Encoding, Narrowing, total=False):
    """Options of `lwqc.quantize`."""


class Compressing(Sources, Deciding, total=False):
    """Options of `lwqc.compress` and `lwqc.plan`."""


class Bounded(Sources, Loss, OutputBounds, total=False):
    """What a model is opened with, and what the result may lose."""


class PruningSources(Bounded, Pruning, total=False):
    """Options of `lwqc.prune`."""


class DroppingSources(Bounded, Dropping, total=False):
    """Options of `lwqc.drop_layers`."""
