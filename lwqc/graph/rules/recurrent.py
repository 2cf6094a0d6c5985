"""LSTM, GRU and RNN: gate-stacked copies of the hidden factor."""

from __future__ import annotations

from lwqc.graph.axes import Factor, fixed, one, product
from lwqc.graph.repairs import Count
from lwqc.graph.rules.context import Context, Rule

_DIRECTION = "directions of a recurrent layer"


def _recurrent(gates: int, peepholes: int = 0) -> Rule:
    def rule(ctx: Context) -> None:
        data = ctx.dims(0)
        w, r = ctx.dims(1), ctx.dims(2)
        hidden = r[2]
        directions = fixed(w[0].size, _DIRECTION) if w[0].size > 1 else one()
        _stack(ctx, w[1], gates, hidden)
        _stack(ctx, r[1], gates, hidden)
        ctx.unify(data[2], w[2])
        if ctx.has(3):
            _stack(ctx, ctx.dims(3)[1], 2 * gates, hidden)
        if peepholes and ctx.has(7):
            _stack(ctx, ctx.dims(7)[1], peepholes, hidden)
        for state in (5, 6):
            if ctx.has(state):
                ctx.unify(ctx.dims(state)[2], hidden)
                ctx.freeze(ctx.dims(state)[:2], _DIRECTION)
        for operand in range(1, len(ctx.inputs)):
            if ctx.has(operand):
                ctx.freeze(ctx.dims(operand)[:1], _DIRECTION)
        batch_first = bool(ctx.integer("layout", 0))
        length, batch = (data[1], data[0]) if batch_first else (data[0], data[1])
        ctx.freeze([length], "time axis of a recurrent layer")
        states = [batch, directions, hidden] if batch_first else [directions, batch, hidden]
        every = [batch, length, directions, hidden]
        ctx.give(every if batch_first else [length, directions, batch, hidden])
        for output in range(1, len(ctx.node.outputs)):
            ctx.give(list(states), output)
        ctx.repairs.append(Count(ctx.node, "hidden_size", hidden))

    return rule


def _stack(ctx: Context, dim: Factor, gates: int, hidden: Factor) -> None:
    ctx.unify(dim, product((fixed(gates, "gates of a recurrent layer"), hidden)))


RULES: dict[tuple[str, str], Rule] = {
    ("", "LSTM"): _recurrent(4, peepholes=3),
    ("", "GRU"): _recurrent(3),
    ("", "RNN"): _recurrent(1),
}
