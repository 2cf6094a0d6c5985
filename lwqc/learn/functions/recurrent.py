"""Recurrent layers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from lwqc.learn.operation import Call, Operation, Table, Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]
_BY_NAME: dict[str, Callable[..., Tensor]] = {
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: F.elu(x, a),
    "hardsigmoid": lambda x, a, b: (a * x + b).clamp(0, 1),
    "leakyrelu": lambda x, a, b: F.leaky_relu(x, a),
    "relu": lambda x, a, b: torch.relu(x),
    "scaledtanh": lambda x, a, b: a * torch.tanh(b * x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "softplus": lambda x, a, b: F.softplus(x),
    "softsign": lambda x, a, b: F.softsign(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "thresholdedrelu": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
}
_ALPHA = {
    "affine": 1.0, "elu": 1.0, "hardsigmoid": 0.2, "leakyrelu": 0.01, "scaledtanh": 1.0,
    "thresholdedrelu": 1.0,
}  # fmt: skip
_BETA = {"affine": 0.0, "hardsigmoid": 0.5, "scaledtanh": 1.0}


def _activations(
    call: Call, usual: Sequence[str], direction: int
) -> list[Callable[[Tensor], Tensor]]:
    """Of one direction, each with its own numbers."""
    count = len(usual)
    names = [n.lower() for n in call.get("activations") or list(usual) * (direction + 1)]
    alphas = list(call.get("activation_alpha") or ())
    betas = list(call.get("activation_beta") or ())
    made: list[Callable[[Tensor], Tensor]] = []
    for at, name in enumerate(names):
        # Numbers are listed for those functions alone that have some.
        a = alphas.pop(0) if alphas and name in _ALPHA else _ALPHA.get(name, 1.0)
        b = betas.pop(0) if betas and name in _BETA else _BETA.get(name, 0.0)
        if at // count == direction:
            made.append(partial(_BY_NAME[name], a=a, b=b))
    return made


def _clipped(call: Call, x: Tensor) -> Tensor:
    bound = call.get("clip")
    return x if bound is None else x.clamp(-bound, bound)


def _run(
    call: Call,
    x: Tensor,
    lengths: Tensor | None,
    starts: Sequence[Tensor | None],
    step_of: Callable[[int], Step],
    hidden: int,
) -> tuple[Tensor | None, ...]:
    """All directions over [time, batch, input]; outputs Y and the last states.

    starts: first states [directions, batch, hidden]. step_of: the step of a direction.
    """
    by_batch = bool(call.get("layout", 0))
    if by_batch:
        x = x.transpose(0, 1)
        starts = [None if s is None else s.transpose(0, 1) for s in starts]
    direction = call.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    time, batch = x.shape[:2]
    outputs, finals = [], []
    for at in range(count):
        backwards = direction == "reverse" or at == 1
        state: State = tuple(x.new_zeros(batch, hidden) if s is None else s[at] for s in starts)
        rows: list[Any] = [None] * time
        step = step_of(at)
        for t in reversed(range(time)) if backwards else range(time):
            new = step(x[t], state)
            if lengths is not None:
                there = (lengths > t)[:, None]
                new = tuple(torch.where(there, n, s) for n, s in zip(new, state, strict=True))
                rows[t] = torch.where(there, new[0], torch.zeros_like(new[0]))
            else:
                rows[t] = new[0]
            state = new
        outputs.append(torch.stack(rows) if rows else x.new_zeros(0, batch, hidden))
        finals.append(state)
    made = torch.stack(outputs, 1)  # [time, directions, batch, hidden]
    last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
    if by_batch:
        made = made.permute(2, 0, 1, 3)
        last = [part.transpose(0, 1) for part in last]
    return (made, *last)


def _biases(bias: Tensor | None, at: int, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Those of the input and of the state."""
    if bias is None:
        zero = like.new_zeros(rows)
        return zero, zero
    return bias[at][:rows], bias[at][rows:]


def _lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    state: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gates in the order input, output, forget, cell."""
    hidden = r.shape[-1]

    def step_of(at: int) -> Step:
        f, g, h = _activations(call, ["sigmoid", "tanh", "tanh"], at)
        before, after = _biases(bias, at, w, 4 * hidden)
        peep = None if peepholes is None else torch.split(peepholes[at], hidden)

        def step(row: Tensor, known: State) -> State:
            past, memory = known
            gates = F.linear(row, w[at], before) + F.linear(past, r[at], after)
            i, o, forget, c = torch.split(gates, hidden, -1)
            if peep is not None:
                i, forget = i + peep[0] * memory, forget + peep[2] * memory
            i = f(_clipped(call, i))
            keep = 1 - i if call.get("input_forget", 0) else f(_clipped(call, forget))
            made = keep * memory + i * g(_clipped(call, c))
            if peep is not None:
                o = o + peep[1] * made
            return f(_clipped(call, o)) * h(made), made

        return step

    return _run(call, x, lengths, (state, cell), step_of, hidden)


def _dynamic_lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    state: Tensor | None,
    cell: Tensor | None,
    peepholes: Tensor | None,
    *scales: Tensor,
) -> tuple[Tensor | None, ...]:
    """com.microsoft.DynamicQuantizeLSTM; inputs and states that it rounds to 8 bits stay floats.

    scales: of w, its zero points, and the same of r.
    """

    def decoded(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        each = (len(codes), 1, -1)  # one per direction, or per direction and gate
        whole = codes.to(x.dtype) - zero.reshape(each).to(x.dtype)
        return (whole * scale.reshape(each)).transpose(1, 2)

    floats = decoded(w, *scales[:2]), decoded(r, *scales[2:])
    return _lstm(call, x, *floats, bias, lengths, state, cell, peepholes)


def _gru(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gates in the order update, reset, hidden."""
    hidden = r.shape[-1]

    def step_of(at: int) -> Step:
        f, g = _activations(call, ["sigmoid", "tanh"], at)
        before, after = _biases(bias, at, w, 3 * hidden)
        linear = bool(call.get("linear_before_reset", 0))

        def step(row: Tensor, known: State) -> State:
            (past,) = known
            wz, wr, wh = torch.split(F.linear(row, w[at], before), hidden, -1)
            rz, rr, rh = torch.split(r[at], hidden)
            bz, br, bh = torch.split(after, hidden)
            z = f(_clipped(call, wz + F.linear(past, rz, bz)))
            reset = f(_clipped(call, wr + F.linear(past, rr, br)))
            if linear:
                inner = wh + reset * F.linear(past, rh, bh)
            else:
                inner = wh + F.linear(reset * past, rh, bh)
            return ((1 - z) * g(_clipped(call, inner)) + z * past,)

        return step

    return _run(call, x, lengths, (state,), step_of, hidden)


def _rnn(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    hidden = r.shape[-1]

    def step_of(at: int) -> Step:
        (f,) = _activations(call, ["tanh"], at)
        before, after = _biases(bias, at, w, hidden)

        def step(row: Tensor, known: State) -> State:
            inner = F.linear(row, w[at], before) + F.linear(known[0], r[at], after)
            return (f(_clipped(call, inner)),)

        return step

    return _run(call, x, lengths, (state,), step_of, hidden)


TABLE: Table = {
    ("", "GRU"): Operation(_gru, fixed=(5,)),
    ("", "LSTM"): Operation(_lstm, fixed=(5, 6)),
    ("com.microsoft", "DynamicQuantizeLSTM"): Operation(
        _dynamic_lstm, fixed=(5, 6, 8, 10), codes=(1, 2)
    ),
    ("", "RNN"): Operation(_rnn, fixed=(5,)),
}
