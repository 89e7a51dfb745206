"""Explicit twins of fused operations: the same values from elementary ones, so that rules can hold their inner factors.

Norms get `scale`, which returns a factor made now or the one held at the clean pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from understudy.core.records.errors import UnderstudyError

Scale = Callable[[Callable[[], Tensor]], Tensor]


class NotExplicit(UnderstudyError):
    """An option of a fused operation that has no explicit twin here."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention as softmax(q k^T) v."""
    if enable_gqa:
        n = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(n, -3), value.repeat_interleave(n, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def multi_head(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None, static_k: Tensor | None = None,
    static_v: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """nn.MultiheadAttention on [pos, batch, d] (or [pos, d]); no attention weights are returned."""
    if bias_k is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise NotExplicit("multi-head attention with bias_k, add_zero_attn or static keys has no explicit twin.")
    single = query.dim() == 2
    if single:
        query, key, value = query[:, None], key[:, None], value[:, None]
    if use_separate_proj_weight:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases: Sequence[Any] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    mask = None if attn_mask is None else additive(attn_mask, q.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        padding = additive(key_padding_mask, q.dtype)
        padding = padding[:, None, None, :] if padding.dim() == 2 else padding
        mask = padding if mask is None else mask + padding
    if is_causal and mask is None:
        out = attention(q, k, v, is_causal=True)
    else:
        out = attention(q, k, v, mask)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(-2), out_proj_weight, out_proj_bias)
    return (out[:, 0] if single else out), None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True = blocked becomes -inf."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


# -- norms ----------------------------------------------------------------------------------------------------------


def layer_norm(scale: Scale, x: Tensor, shape: Sequence[int], weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * scale(lambda: (centred.square().mean(dims, keepdim=True) + eps).rsqrt())
    return _affine(out, weight, bias)


def rms_norm(scale: Scale, x: Tensor, shape: Sequence[int], weight=None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * scale(lambda: (x.square().mean(dims, keepdim=True) + small).rsqrt()), weight, None)


def group_norm(scale: Scale, x: Tensor, num_groups: int, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    grouped = x.unflatten(1, (num_groups, -1)).flatten(2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    out = (centred * scale(lambda: (centred.square().mean(-1, keepdim=True) + eps).rsqrt())).reshape(x.shape)
    shape = (1, -1, *[1] * (x.dim() - 2))
    return _affine(out, *(None if p is None else p.view(shape) for p in (weight, bias)))


def instance_norm(
    scale: Scale, x: Tensor, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        raise NotExplicit("instance norm with running statistics has no explicit twin.")
    return group_norm(scale, x, x.shape[1], weight, bias, eps)


def normalize(scale: Scale, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out=None) -> Tensor:
    return x * scale(lambda: 1 / x.norm(p, dim, keepdim=True).clamp_min(eps))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


# -- recurrent ------------------------------------------------------------------------------------------------------


def gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None) -> Tensor:
    xr, xz, xn = F.linear(x, w_ih, b_ih).chunk(3, -1)
    hr, hz, hn = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return (1 - z) * n + z * h


def lstm_cell(
    x: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None
) -> tuple[Tensor, Tensor]:
    h, c = hx
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def rnn_tanh_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None) -> Tensor:
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def rnn_relu_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None) -> Tensor:
    return torch.relu(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def gru(x: Any, hx: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    return _unrolled(gru_cell, x, hx, *rest)


def rnn_tanh(x: Any, hx: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    return _unrolled(rnn_tanh_cell, x, hx, *rest)


def rnn_relu(x: Any, hx: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    return _unrolled(rnn_relu_cell, x, hx, *rest)


def lstm(x: Any, hx: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, (h, c) = _unrolled(lstm_cell, x, hx, *rest)
    return out, h, c


def _unrolled(cell: Callable, x: Any, hx: Any, weights: Any, *rest: Any) -> tuple[Tensor, Any]:
    """One step at a time, layer by layer; batched, unpacked sequences in eval mode."""
    if not isinstance(weights, (list, tuple)):
        raise NotExplicit("packed sequences have no explicit twin: pass padded ones.")
    has_bias, n_layers, _, _, both_ways, batch_first = rest
    per = 4 if has_bias else 2
    if len(weights) != per * n_layers * (2 if both_ways else 1):
        raise NotExplicit("an LSTM with projections has no explicit twin.")
    sequence = list(x.unbind(1 if batch_first else 0))
    several = isinstance(hx, (list, tuple))
    finals = []
    for layer in range(n_layers):
        outs = []
        for way in range(2 if both_ways else 1):
            j = layer * (2 if both_ways else 1) + way
            state = tuple(s[j] for s in hx) if several else hx[j]
            steps = sequence[::-1] if way else sequence
            found = []
            for step in steps:
                state = cell(step, state, *weights[per * j : per * (j + 1)])
                found.append(state[0] if several else state)
            finals.append(state)
            outs.append(found[::-1] if way else found)
        sequence = [torch.cat(o, -1) for o in zip(*outs, strict=True)] if both_ways else outs[0]
    out = torch.stack(sequence, 1 if batch_first else 0)
    last = tuple(torch.stack(s) for s in zip(*finals, strict=True)) if several else torch.stack(finals)
    return out, last
