"""Attention and what turns queries and keys by their places."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
import torch.nn.functional as F

from lwqc.errors import InputError
from lwqc.learn.operation import Call, Operation, Table, Tensor

_PRODUCTS, _SHARES = 0, 3  # what qk_matmul_output_mode asks for


def _heads(x: Tensor, count: int) -> Tensor:
    """[B, S, heads * d] as [B, heads, S, d]."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    """[B, heads, S, d] as [B, S, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def _causal(queries: int, keys: int, first: int, device: torch.device) -> Tensor:
    """Which keys each query may see; first: place of the first query."""
    places = torch.arange(queries, device=device)[:, None] + first
    return torch.arange(keys, device=device) <= places


def _joined(mask: Tensor | None, seen: Tensor) -> Tensor:
    """A mask that also hides what `seen` says."""
    if mask is None:
        return seen
    if mask.dtype is torch.bool:
        return mask & seen
    return torch.where(seen, mask, torch.full_like(mask, -math.inf))


def _attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """ONNX's own, since opset 23."""
    flat = query.ndim == 3
    q = _heads(query, call.get("q_num_heads"))
    k, v = (_heads(x, call.get("kv_num_heads")) for x in (key, value))
    first = 0
    if past_key is not None and past_value is not None:
        first = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys = k.shape[2]
    seen = mask
    if seen is not None and seen.shape[-1] < keys:
        filler = False if seen.dtype is torch.bool else -math.inf
        seen = F.pad(seen, (0, keys - seen.shape[-1]), value=filler)
    if call.get("is_causal", 0):
        seen = _joined(seen, _causal(q.shape[2], keys, first, q.device))
    if lengths is not None:
        there = torch.arange(keys, device=q.device) < lengths[:, None]
        seen = _joined(seen, there[:, None, None])
    made, scores = attend(
        q,
        k,
        v,
        seen,
        call.get("scale"),
        softcap=call.get("softcap", 0.0),
        scores_at=call.get("qk_matmul_output_mode", 0) if _wants(call, 3) else None,
    )
    return (_flat(made) if flat else made), k, v, scores


def _wants(call: Call, index: int) -> bool:
    return len(call.wanted) > index and call.wanted[index]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    *,
    softcap: float = 0.0,
    scores_at: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Values [B, heads, S, d] that queries take, and the scores where they are asked for.

    mask: bool (what may be seen) or added. Heads of keys may be fewer. scores_at: 0 the products,
    3 the shares.
    """
    if q.shape[1] != k.shape[1]:
        each = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    if not softcap and scores_at is None:
        if mask is not None and mask.dtype is not torch.bool:
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale), None
    factor = scale if scale else q.shape[-1] ** -0.5
    scores = (q * factor) @ k.mT
    capped = softcap * torch.tanh(scores / softcap) if softcap else scores
    if mask is None:
        masked = capped
    elif mask.dtype is torch.bool:
        masked = torch.where(mask, capped, torch.full_like(capped, -math.inf))
    else:
        masked = capped + mask.to(capped.dtype)
    shares = torch.softmax(masked, -1)
    wanted = None if scores_at is None else scores if scores_at == _PRODUCTS else shares
    return shares @ v, wanted


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [B, heads, S, d] turned by cos, sin [B, 1, S, r / 2]; what is beyond r stays."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., :half], turned[..., half:]
    parts = [a * cos - b * sin, a * sin + b * cos]
    made = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return torch.cat([made, rest], -1) if rest.shape[-1] else made


def _rotary(call: Call, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None) -> Tensor:
    flat = x.ndim == 3
    heads = call.get("num_heads", 0)
    if flat and not heads:
        heads = x.shape[-1] // (call.get("rotary_embedding_dim", 0) or 2 * cos.shape[-1])
    value = _heads(x, heads)
    if places is not None:
        if places.numel() == 1:
            places = places.reshape(1, 1) + torch.arange(value.shape[2], device=x.device)
        cos, sin = cos[places.long()], sin[places.long()]
    wanted = call.get("rotary_embedding_dim", 0)
    if wanted:
        cos, sin = cos[..., : wanted // 2], sin[..., : wanted // 2]
    made = rotated(value, cos[:, None], sin[:, None], bool(call.get("interleaved", 0)))
    return _flat(made) if flat else made


def _rotary_onnx(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None
) -> Tensor:
    return _rotary(call, x, cos, sin, places)


def _rotary_microsoft(call: Call, x: Tensor, places: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if call.get("is_packed_batching", 0):
        raise InputError(f"{call.label}: packed batches are not known here")
    return _rotary(call, x, cos, sin, places)


def _padding(call: Call, mask: Tensor | None, keys: int, like: Tensor) -> Tensor | None:
    """What a mask of com.microsoft adds to the scores: lengths [B], or 0 and 1 [B, (S,) keys]."""
    if mask is None:
        return None
    places = torch.arange(keys, device=mask.device)
    seen = places < mask[:, None] if mask.ndim == 1 else mask != 0
    seen = seen[:, None, None] if seen.ndim == 2 else seen[:, None] if seen.ndim == 3 else seen
    filler = call.get("mask_filter_value", -10000.0)
    return torch.where(seen, torch.zeros((), dtype=like.dtype), torch.full((), filler).to(like))


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _scored(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first: int) -> Tensor:
    if call.get("unidirectional", 0):
        seen = _causal(q.shape[2], k.shape[2], first, q.device)
        filler = call.get("mask_filter_value", -10000.0)
        hidden = torch.where(seen, torch.zeros(()), torch.full((), filler)).to(q)
        mask = _added(mask, hidden)
    return attend(q, k, v, mask, call.get("scale"))[0]


def _multi_head(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """com.microsoft.MultiHeadAttention, with separate queries, keys and values."""
    if query.ndim != 3 or key is None or value is None:
        raise InputError(f"{call.label}: packed queries, keys and values are not known here")
    heads = call.get("num_heads")
    if bias is not None:
        widths = [query.shape[-1], query.shape[-1], bias.numel() - 2 * query.shape[-1]]
        bq, bk, bv = torch.split(bias, widths)
        query = query + bq
        key, value = (key + bk, value + bv) if key.ndim == 3 else (key, value)
    q, k, v = (_heads(x, heads) for x in (query, key, value))
    first = 0
    if past_key is not None and past_value is not None:
        first = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    mask = _added(_padding(call, padding, k.shape[2], q), added)
    return _flat(_scored(call, q, k, v, mask, first)), k, v


def _packed(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """com.microsoft.Attention: one weight [D, q + k + v]."""
    heads = call.get("num_heads")
    made = torch.matmul(x, weight)
    made = made if bias is None else made + bias
    sizes = call.get("qkv_hidden_sizes") or [made.shape[-1] // 3] * 3
    q, k, v = (_heads(part, heads) for part in torch.split(made, list(sizes), -1))
    first = 0
    if past is not None:
        first = past.shape[3]
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    mask = _added(_padding(call, index, k.shape[2], q), added)
    return _flat(_scored(call, q, k, v, mask, first)), torch.stack([k, v])


def _grouped(
    call: Call,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    total: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """com.microsoft.GroupQueryAttention: causal; lengths [B] of the keys, less one."""
    heads, groups = call.get("num_heads"), call.get("kv_num_heads")
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * groups)
        query, key, value = torch.split(query, [heads * size, groups * size, groups * size], -1)
    q, k, v = _heads(query, heads), _heads(key, groups), _heads(value, groups)
    new = q.shape[2]
    if lengths is None:
        raise InputError(f"{call.label}: leaves out the lengths of the keys")
    ends = lengths.reshape(-1).long() + 1
    first = 0 if past_key is None else past_key.shape[2]
    prompt = first == 0 or bool((ends == new).all())
    # Of a prompt each row begins at 0; later each follows its own past.
    begins = torch.zeros_like(ends) if prompt else ends - new
    places = begins[:, None] + torch.arange(new, device=q.device)
    if call.get("do_rotary", 0):
        if cos is None or sin is None:
            raise InputError(f"{call.label}: rotates, but leaves out cosines or sines")
        turn = bool(call.get("rotary_interleaved", 0))
        at = places.clamp(max=cos.shape[0] - 1)
        q, k = (rotated(x, cos[at][:, None], sin[at][:, None], turn) for x in (q, k))
    if past_key is not None and past_value is not None and first:
        if not bool((begins == first).all()):
            raise InputError(f"{call.label}: pasts of different lengths are not known here")
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    keys = torch.arange(k.shape[2], device=q.device)
    seen = keys <= places[..., None]
    window = call.get("local_window_size", -1)
    if window > 0:
        seen = seen & (keys > places[..., None] - window)
    made, _ = attend(
        q, k, v, seen[:, None], call.get("scale") or None, softcap=call.get("softcap", 0.0)
    )
    return _flat(made), k, v


def _why_not_grouped(call: Call, node: ir.Node) -> str:
    if call.get("smooth_softmax", 0) > 0:
        return "smooth_softmax is not known here"
    more = any(value is not None for value in node.inputs[9:])
    return "places, biases and sinks are not known here" if more else ""


def _why_not_attention(call: Call, node: ir.Node) -> str:
    if call.get("is_causal", 0) and len(node.inputs) > 6 and node.inputs[6] is not None:
        return "is_causal with nonpad_kv_seqlen is not known here"
    mode = call.get("qk_matmul_output_mode", 0)
    if _wants(call, 3) and mode not in (_PRODUCTS, _SHARES):
        return f"qk_matmul_output_mode {mode} is not known here"
    return ""


_MS = "com.microsoft"

TABLE: Table = {
    ("", "Attention"): Operation(_attention, refused=_why_not_attention),
    ("", "RotaryEmbedding"): Operation(_rotary_onnx, fixed=(1, 2)),
    (_MS, "Attention"): Operation(_packed),
    (_MS, "GroupQueryAttention"): Operation(_grouped, fixed=(7, 8), refused=_why_not_grouped),
    (_MS, "MultiHeadAttention"): Operation(_multi_head),
    (_MS, "RotaryEmbedding"): Operation(_rotary_microsoft, fixed=(2, 3)),
}
