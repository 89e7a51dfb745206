"""Rules that make operations linear at the clean pass, by operation. See `frozen` for what they mean."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from understudy.attribution import twins
from understudy.attribution.frozen import Freeze, Rule, is_live
from understudy.attribution.held_product import fits, held_product


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LINEAR = _names("""
    add sub rsub neg positive sum mean cumsum cat concat concatenate stack hstack vstack reshape view view_as flatten
    unflatten ravel permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as repeat
    repeat_interleave tile broadcast_to broadcast_tensors contiguous clone to type type_as float half bfloat16 double
    cpu cuda getitem setitem narrow select index_select gather take_along_dim take scatter scatter_add index_add
    index_copy index_put index masked_fill masked_scatter masked_select where chunk split split_with_sizes tensor_split
    unbind unfold fold flip roll rot90 pad constant_pad_nd tril triu diagonal diag diag_embed zero fill copy
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate
    pixel_shuffle pixel_unshuffle dropout dropout1d dropout2d alpha_dropout feature_dropout lerp real imag as_strided
    view_as_real view_as_complex get_T get_mT get_H get_mH get_real get_imag requires_grad zeros_like ones_like
    empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor get_grad

""")
"""Operations that are linear in whatever is live among their arguments, that only move data, or take only its shape."""


def product(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """mul, matmul, einsum, linear, convolutions: linear where one factor is live, else all but one are held."""
    name = f.operation
    flat = list(args)
    if name == "einsum" and len(flat) == 2 and isinstance(flat[1], (list, tuple)):
        flat = [flat[0], *flat[1]]
    first = {"addmm": 1, "baddbmm": 1, "addbmm": 1, "addcmul": 1, "addmv": 1}.get(name, 0)
    live = [i for i, x in enumerate(flat) if i >= first and is_live(x)]
    if len(live) <= 1:
        if live == [1] and name in ("matmul", "bmm") and not kwargs and fits(flat[0], flat[1]):
            return held_product(flat[0], flat[1])
        return func(*flat, **kwargs)
    gates = [i for i in live if f.is_gate(flat[i])]
    if gates and len(gates) < len(live):
        for i in gates:
            kept = f.held("gate", lambda i=i: flat[i])
            flat[i] = flat[i] if kept is None else kept
        live = [i for i in live if i not in gates]
        if len(live) == 1 or any(is_live(flat[i]) for i in gates):
            return func(*flat, **kwargs)
    return _split(f, func, name, flat, kwargs, live)


def _split(f: Freeze, func: Callable[..., Any], name: str, flat: list, kwargs: dict, live: list[int]) -> Any:
    """The mean over factors of the product in which that one is live and the others are held."""
    held = {i: f.held("split product", lambda i=i: flat[i]) for i in live}
    if any(value is None for value in held.values()):
        return func(*flat, **kwargs)
    parts = [func(*[held[j] if j in held and j != i else x for j, x in enumerate(flat)], **kwargs) for i in live]
    return sum(parts[1:], parts[0]) / len(parts)


def quotient(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a / b with b held: a denominator scales."""
    a, b, *more = args
    if not is_live(b):
        return func(*args, **kwargs)
    kept = f.held("norm scale", lambda: b)
    return func(*args, **kwargs) if kept is None else func(a, kept, *more, **kwargs)


def constant(rule: str) -> Rule:
    """The result is held whole."""

    def hold(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        kept = f.held(rule, lambda: func(*args, **kwargs))
        return func(*args, **kwargs) if kept is None else kept

    return hold


def ratio(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """f(x) = x . [f(x) / x] for f(0) = 0."""
    x = args[0]
    kept = f.held("activation ratio", lambda: secant(func, x, args[1:], kwargs))
    out = func(*args, **kwargs) if kept is None else x * kept
    return f.mark_gate(out)


@torch.no_grad()
def secant(func: Callable[..., Any], x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """f(x) / x, and the slope of f at 0 where x is too small to divide by."""
    x = x.detach().clone()
    kwargs = {k: v for k, v in kwargs.items() if k != "inplace"} if "inplace" in kwargs else kwargs
    small = x.abs() < 1e-6
    step = torch.full_like(x, 1e-3)
    at_zero = (func(step, *args, **kwargs) - func(-step, *args, **kwargs)) / (2 * step)
    return torch.where(small, at_zero, func(x.clone(), *args, **kwargs) / torch.where(small, 1.0, x))


def clamp(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """x where it lies inside, the bound where it does not; which is which is held."""
    x = args[0]
    inside = f.held("routing", lambda: func(*args, **kwargs) == x)
    if inside is None:
        return func(*args, **kwargs)
    bound = f.held("routing", lambda: func(*args, **kwargs))
    assert bound is not None
    return torch.where(inside.bool(), x, bound)


def chosen(f: Freeze, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict) -> Any:
    """topk, sort, max and min along an axis: the choice is held, the values are gathered."""
    out = func(*args, **kwargs)
    x = args[0]
    if isinstance(out, Tensor):  # amax of everything, or of two tensors
        others = [a for a in args[1:] if isinstance(a, Tensor)]
        if others:
            left = f.held(
                "routing",
                lambda: x >= others[0] if "max" in f.operation else x <= others[0],
            )
            return out if left is None else torch.where(left.bool(), x, others[0])
        where = f.held("routing", lambda: (x == _spread(out, x, args, kwargs)).to(x.dtype))
        if where is None:
            return out
        dim, keep = _dims(args, kwargs)
        weights = where / where.sum(dim, keepdim=True)
        return (x * weights).sum(dim, keepdim=keep) if dim is not None else (x * weights).sum()
    dim = _dim(f.operation, args, kwargs)
    indices = f.held("routing", lambda: out[1])
    if indices is None:
        return out
    squeezed = indices.dim() < x.dim()
    at = indices.unsqueeze(dim) if squeezed else indices
    values = x.gather(dim, at)
    return type(out)((values.squeeze(dim) if squeezed else values, indices))


def _dim(operation: str, args: tuple, kwargs: dict) -> int:
    """The axis along which topk, sort, max or min choose; the last unless given."""
    position = 2 if operation == "topk" else 1
    dim = kwargs.get("dim", args[position] if len(args) > position else -1)
    return dim if isinstance(dim, int) and not isinstance(dim, bool) else -1


def _dims(args: tuple, kwargs: dict) -> tuple[Any, bool]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim, kwargs.get("keepdim", args[2] if len(args) > 2 else False)


def _spread(out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    dim, keep = _dims(args, kwargs)
    return out if dim is None or keep else out.unsqueeze(dim)


def max_pool(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """max_pool1d, 2d and 3d: the choice of pixel is held."""
    x = args[0]
    pool = {"max_pool1d": F.max_pool1d, "max_pool2d": F.max_pool2d, "max_pool3d": F.max_pool3d}[f.operation]
    spatial = int(f.operation[-2])
    options = {k: v for k, v in kwargs.items() if k != "return_indices"}
    at = f.held("routing", lambda: pool(*args, **options, return_indices=True)[1])
    if at is None:
        return func(*args, **kwargs)
    return x.flatten(-spatial).gather(-1, at.flatten(-spatial)).view(at.shape)


def twin(explicit: Callable[..., Any]) -> Rule:
    """A fused operation as an explicit one, whose own operations follow the rules."""

    def run(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        with f.inside(f.operation):
            return explicit(*args, **kwargs)

    return run


def norm(explicit: Callable[..., Any]) -> Rule:
    """A norm as centring and scale, the scale held."""

    def run(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        def scale(make: Callable[[], Tensor]) -> Tensor:
            kept = f.held("norm scale", make)
            return make() if kept is None else kept

        return explicit(scale, *args, **kwargs)

    return run


def batch_norm(f: Freeze, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Affine with running statistics; with those of the batch it would mix the examples."""
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    if training:
        raise twins.NotExplicit("batch norm in training mode mixes examples: put the network in eval mode.")
    return func(*args, **kwargs)


def _table() -> dict[str, Rule]:
    by_rule: dict[Rule, str] = {
        product: "mul multiply matmul bmm mm mv dot einsum grouped_mm grouped_mm_fallback linear conv1d conv2d conv3d "
        "conv_transpose1d conv_transpose2d addmm baddbmm addbmm addmv addcmul outer inner tensordot bilinear",
        quotient: "div true_divide divide",
        constant("pattern"): "softmax log_softmax softmin",
        constant(
            "gate"
        ): "sigmoid exp exp2 expm1 softplus log log1p log2 cos logsigmoid erf logsumexp hardsigmoid rdiv cumprod prod",
        constant("norm scale"): "pow square rsqrt sqrt reciprocal norm vector_norm var std rpow",
        ratio: "relu relu6 gelu silu mish elu selu celu leaky_relu prelu hardswish hardtanh tanh softsign tanhshrink "
        "softshrink sin threshold abs",
        clamp: "clamp clip clamp_min clamp_max",
        chosen: "topk sort max min amax amin maximum minimum",
        max_pool: "max_pool1d max_pool2d max_pool3d",
        batch_norm: "batch_norm",
    }
    rules = {name: rule for rule, names in by_rule.items() for name in names.split()}
    fused = (twins.glu, twins.gru, twins.lstm, twins.rnn_tanh, twins.rnn_relu, twins.gru_cell, twins.lstm_cell,
             twins.rnn_tanh_cell, twins.rnn_relu_cell)  # fmt: skip
    rules |= {explicit.__name__: twin(explicit) for explicit in fused}
    rules |= {"scaled_dot_product_attention": twin(twins.attention)}
    rules |= {"multi_head_attention_forward": twin(twins.multi_head)}
    norms = (twins.layer_norm, twins.rms_norm, twins.group_norm, twins.instance_norm, twins.normalize)
    return rules | {explicit.__name__: norm(explicit) for explicit in norms}


RULES: dict[str, Rule] = _table()
"""By operation name, see `frozen.operation_name`."""
