"""Making a torch module of a model, and storing in the model what was trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import onnx_ir as ir
import torch

from lwqc.errors import InputError
from lwqc.learn.building import Builder
from lwqc.learn.grids import Grid
from lwqc.learn.module import Held, OnnxModule
from lwqc.learn.stored import Stored, replaced, stored_tensors
from lwqc.learn.tensors import to_array, to_torch_tensor
from lwqc.learn.weights import FLOATS, code_grids, why_no_weights

Trainable = Literal["weights", "all", "none"] | Collection[str] | Callable[[str], bool]
_ON_CPU = 64  # elements up to which whole numbers stay there: shapes, axes, indices


def module_of(
    model: ir.Model, trainable: Trainable = "weights", *, codes: bool = False
) -> OnnxModule:
    """The module of a model.

    trainable: `weights`, see `why_no_weights`; `all` floats; `none`; names of stored tensors; or a
    function that is asked for each name. codes: those of weights are parameters too, rounded in
    every run, with gradients that go straight through.

    Raises InputError for operators whose torch function is not known, before anything runs, and
    for names that the model does not store.
    """
    builder = Builder(model)
    module = OnnxModule(model, builder)
    reasons = _untrained(model, trainable)
    grids = code_grids(model) if codes else {}
    for default in model.graph.inputs:
        if default.is_initializer() and default.const_value is not None:
            given = to_torch_tensor(default.const_value, default.name or "")
            module.constant(builder.place(default), given)
    for stored in stored_tensors(model):
        value = to_torch_tensor(stored.tensor, stored.name)
        number, kind, grid = (
            builder.place(stored.value),
            stored.tensor.dtype,
            grids.get(stored.value),
        )
        reason = grid if isinstance(grid, str) else reasons.get(stored.value)
        if reason:
            module.untrained[stored.name] = reason
        if isinstance(grid, Grid):
            held = Held(number, stored.place, kind, grid)
            module.hold(held, grid.parameter(value), trained=True)
        elif kind in FLOATS or value.numel() > _ON_CPU:
            trained = kind in FLOATS and reason is None
            module.hold(Held(number, stored.place, kind), value, trained=trained)
        else:
            module.constant(number, value)
    return module


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
    for name, held in module.held.items():
        if not isinstance(getattr(module, name), torch.nn.Parameter):
            continue
        stored = places.get(held.place)
        if stored is None:
            raise InputError(f"{held.place[-1]}: the model stores no such tensor")
        _store(stored, held, getattr(module, name))
    return made


def _store(stored: Stored, held: Held, parameter: torch.Tensor) -> None:
    value = parameter.detach() if held.grid is None else held.grid.stored(parameter)
    old = to_torch_tensor(stored.tensor, stored.name)
    if old.shape != value.shape or stored.tensor.dtype is not held.kind:
        raise InputError(
            f"{stored.name}: is {held.kind.name.lower()}{list(value.shape)} in the module, "
            f"{stored.tensor.dtype.name.lower()}{list(old.shape)} in the model"
        )
    new = to_array(value, held.kind)
    if not torch.equal(old, value.cpu().to(old.dtype)):
        replaced(stored, ir.Tensor(new, dtype=held.kind, name=stored.tensor.name))
