"""Making a torch module of a model, and storing in the model what was trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.building import Builder
from lwqc.learn.fitted_scales import FittedScales
from lwqc.learn.grids import Grid, ZeroPoint
from lwqc.learn.module import Follower, Held, OnnxModule
from lwqc.learn.relevance import Rule
from lwqc.learn.stored import Stored, replaced, stored_tensors
from lwqc.learn.tensors import to_array, to_torch_tensor
from lwqc.learn.unpacking import unpackings
from lwqc.learn.weights import FLOATS, code_grids, why_no_weights

Trainable = Literal["weights", "all", "none"] | Collection[str] | Callable[[str], bool]
_OVERRIDABLE = "it is an input of the model too, so that callers may give another"
_OF_BATCHES = "a statistic, which batches change"
_ON_CPU = 64  # elements up to which whole numbers stay there: shapes, axes, indices


def module_of(
    model: ir.Model,
    trainable: Trainable = "weights",
    *,
    codes: bool = False,
    scales: bool = False,
    widen: bool = False,
    batch_statistics: bool = False,
    rule: Rule | None = None,
) -> OnnxModule:
    """The module of a model.

    trainable: `weights`, see `why_no_weights`; `all` floats; `none`; names of stored tensors; or a
    function that is asked for each name. codes: those of weights are parameters too, rounded in
    every run, with gradients that go straight through. scales: those of such codes too, as shares
    of what they were, and the grids of activations, see `FittedScales`. widen: weights of 16 bits
    are parameters of 32, which operators read in 16. batch_statistics: in `train()`
    BatchNormalization goes by each batch, whose statistics move those of the file. rule: slopes are
    relevance by that rule.

    Raises InputError for operators whose torch function is not known, before anything runs; for
    names that the model does not store; and for statistics that are not a normalisation's own.
    """
    making = _Making(
        model,
        trainable,
        codes=codes,
        scales=scales,
        widen=widen,
        batch_statistics=batch_statistics,
        rule=rule,
    )
    for stored in stored_tensors(model):
        making.add(stored)
    making.follow()
    return making.module


class _Making:
    """A module to which the stored tensors of its model are added."""

    def __init__(
        self,
        model: ir.Model,
        trainable: Trainable,
        *,
        codes: bool,
        scales: bool,
        widen: bool,
        batch_statistics: bool,
        rule: Rule | None,
    ) -> None:
        """Build the program, and decide what is trained."""
        self._widen = widen
        self._grids = code_grids(model) if codes else {}
        self._unpackings = {u.codes: u for u in unpackings(model)} if codes else {}
        self._grids |= {value: unpacking.grid for value, unpacking in self._unpackings.items()}
        coded = [value for value, grid in self._grids.items() if isinstance(grid, Grid)]
        self._scales = FittedScales.of(model, coded) if scales else FittedScales()
        unpacked = (u.nodes for u in self._unpackings.values())
        inside = frozenset().union(*unpacked)
        self._builder = Builder(model, inside, batch_statistics=batch_statistics, rule=rule)
        moving = dict.fromkeys(self._builder.moving, _OF_BATCHES)
        self._reasons = _untrained(model, trainable) | moving | dict(self._scales.refused)
        self._named: dict[ir.Value, str] = {}
        self._following: list[tuple[Held, tuple[ir.Value, ...]]] = []
        self.module = OnnxModule(model, self._builder)
        for value in model.graph.inputs:
            if value.is_initializer() and value.const_value is not None:
                given = to_torch_tensor(value.const_value, value.name or "")
                self.module.constant(self._builder.place(value), given)
                if value.const_value.dtype in FLOATS:
                    self.module.untrained[value.name or ""] = _OVERRIDABLE

    def add(self, stored: Stored) -> None:
        """Hold a tensor as codes, parameter, buffer or constant."""
        value, kind = to_torch_tensor(stored.tensor, stored.name), stored.tensor.dtype
        unpacking, grid = self._unpackings.get(stored.value), self._grids.get(stored.value)
        number = self._builder.place(stored.value if unpacking is None else unpacking.end)
        if stored.value in self._scales:
            self._add_scale(stored, number, value)
            return
        reason = grid if isinstance(grid, str) else self._reasons.get(stored.value)
        if reason:
            self.module.untrained[stored.name] = reason
        if isinstance(grid, Grid):
            held = Held(number, stored.place, kind, grid)
            self.module.hold(held, grid.parameter(value), trained=True)
        elif kind in FLOATS or value.numel() > _ON_CPU:
            trained = kind in FLOATS and reason is None
            wide = trained and self._widen and kind.bitwidth == 16
            narrow, moving = value.dtype if wide else None, stored.value in self._builder.moving
            held = Held(number, stored.place, kind, narrow=narrow, moving=moving)
            self.module.hold(held, value.float() if wide else value, trained=trained)
        else:
            self.module.constant(number, value)

    def _add_scale(self, stored: Stored, number: int, value: torch.Tensor) -> None:
        """A scale or a zero point that is fitted, or follows others that are."""
        kind, leaders = stored.tensor.dtype, self._scales.followers.get(stored.value)
        if kind in FLOATS:
            held = Held(number, stored.place, kind, base=value)
            wide = torch.promote_types(value.dtype, torch.float32)
            parameter = torch.ones(value.shape, dtype=wide)
        else:
            zero = ZeroPoint(kind)
            held = Held(number, stored.place, kind, zero=zero)
            parameter = zero.parameter(value)
        if leaders is None:
            self._named[stored.value] = self.module.hold(held, parameter, trained=True)
        else:
            self._following.append((held, leaders))

    def follow(self) -> None:
        """Hold what goes by parameters, now that all of these have names."""
        for held, leaders in self._following:
            names = tuple(self._named[leader] for leader in leaders)
            self.module.followers.append(Follower(held, names))


def _untrained(model: ir.Model, trainable: Trainable) -> dict[ir.Value, str]:
    """Why stored floats are no parameters."""
    if trainable == "weights":
        return why_no_weights(model)
    floats = [s for s in stored_tensors(model) if s.tensor.dtype in FLOATS]
    if isinstance(trainable, str):
        if trainable not in ("all", "none"):
            raise InputError(f"trainable {trainable}: expected weights, all, none or names")
        chosen = {s.name for s in floats if trainable == "all"}
    elif callable(trainable):
        chosen = {s.name for s in floats if trainable(s.name)}
    else:
        chosen = set(trainable)
        unknown = sorted(chosen - {s.name for s in floats})
        if unknown:
            raise InputError(f"trainable {unknown[0]}: the model stores no floats of that name")
    return {s.value: "not asked for" for s in floats if s.name not in chosen}


def write_back(module: OnnxModule, model: ir.Model) -> ir.Model:
    """A copy of the model with the trained numbers in it; whatever did not change is as it was.

    model: the one that the module was made of, or another that stores tensors of those names.
    Raises InputError where it stores no such tensor, or one of another shape or type.
    """
    made = model.clone()
    places = {stored.place: stored for stored in stored_tensors(made)}
    for held, names in module.kept():
        parameters = [getattr(module, name) for name in names]
        if not isinstance(parameters[0], torch.nn.Parameter) and not held.moving:
            continue
        stored = places.get(held.place)
        if stored is None:
            raise InputError(f"{held.place[-1]}: the model stores no such tensor")
        _store(stored, held, _value(held, [p.detach() for p in parameters]))
    return made


def _value(held: Held, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is stored; weights in the type that they are fitted in."""
    if held.grid is not None:
        return held.grid.stored(parameters[0])
    if held.base is not None or held.zero is not None:
        return held.read(*parameters)
    return parameters[0]


def _store(stored: Stored, held: Held, value: torch.Tensor) -> None:
    old = to_torch_tensor(stored.tensor, stored.name)
    if old.shape != value.shape or stored.tensor.dtype is not held.kind:
        raise InputError(
            f"{stored.name}: is {held.kind.name.lower()}{list(value.shape)} in the module, "
            f"{stored.tensor.dtype.name.lower()}{list(old.shape)} in the model"
        )
    new = to_array(value, held.kind)
    if not torch.equal(old, value.cpu().to(old.dtype)):
        replaced(stored, ir.Tensor(new, dtype=held.kind, name=stored.tensor.name))
