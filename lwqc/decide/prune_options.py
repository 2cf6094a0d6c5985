"""What pruning is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lwqc.decide.scores.channels.final_error import Loss
from lwqc.decide.scores.channels.ranking import Normaliser
from lwqc.decide.scores.channels.score import channel_score
from lwqc.errors import InputError
from lwqc.model.extensions import CHANNEL_SCORES, expected

Compensate = Literal["none", "bias", "refit"]


@dataclass(frozen=True)
class PruneOptions:
    """What to remove.

    ratio: share of the multiply-accumulates (`by` macs), of the weights (parameters) or of the
    channels of every group (channels) that goes. score: criterion within a group, see
    `lwqc.decide.scores.channels.score`. normalise: how
    groups are compared. scope: `global` takes the cheapest channels of the whole model, `local`
    the same share of every group. per_cost: compare by price per MAC (or parameter) saved.
    round_to: widths stay multiples of it where a group allows. min_channels: each group keeps at
    least that many. max_ratio: largest share that one group loses under `global`.
    groups: group name or pattern -> share that goes. statistics: also prune groups that a
    normalisation or pooling mixes. compensate: see `plan.Pruning`. loss: of (outputs,
    feeds), for scores that take one.
    """

    ratio: float
    by: Literal["macs", "parameters", "channels"] = "macs"
    score: str = "l2"
    normalise: Normaliser | Literal["output"] = "mean"
    scope: Literal["global", "local"] = "global"
    per_cost: bool = False
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 0.9
    groups: Mapping[str, float] = field(default_factory=dict)
    statistics: bool = False
    compensate: Compensate = "none"
    batch_norm: bool = False
    calibration: Literal["data", "random"] = "data"
    resizable_outputs: tuple[str, ...] = ()
    recipe: str = ""
    loss: Loss | None = None

    def __post_init__(self) -> None:
        """Raises InputError for values out of range and for options that exclude each other."""
        if self.score not in CHANNEL_SCORES:
            known = expected(self.score, CHANNEL_SCORES.names())
            raise InputError(f"--score {self.score}: {known}")
        score = channel_score(self.score)
        for name, value in (("ratio", self.ratio), *self.groups.items()):
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise InputError(f"{name} {value}: expected a share from 0 to below 1")
        for name, count in (("round-to", self.round_to), ("min-channels", self.min_channels)):
            if not isinstance(count, int) or count < 1:
                raise InputError(f"--{name} {count}: expected a whole number of at least 1")
        if isinstance(self.resizable_outputs, str):
            raise InputError("resizable_outputs: expected a tuple of names")
        if score.needs_loss and self.loss is None:
            raise InputError(f"--score {self.score} needs --loss module:function(outputs, feeds)")
        if self.loss is not None and not score.takes_loss:
            takers = [n for n in CHANNEL_SCORES.built_in if channel_score(n).takes_loss]
            raise InputError(f"--loss is for --score {', '.join(takers)}, not for {self.score}")
        if self.normalise == "output" and not score.own_scale:
            raise InputError(f"--normalise output needs --score obs, not {self.score}")
