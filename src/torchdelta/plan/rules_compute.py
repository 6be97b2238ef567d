"""Lowering rules of operations that compute: one function per kind of ATen call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchdelta.errors import CaptureError
from torchdelta.ops import (
    AdaptivePool2d,
    Affine,
    AvgPool2d,
    Bilinear,
    Binary,
    BinaryConst,
    Conv2d,
    ConvTranspose2d,
    GlobalReduce,
    MaxPool2d,
    Pointwise,
    Softmax,
    TileReduce,
)
from torchdelta.ops.base import Op
from torchdelta.ops.functions import BINARY
from torchdelta.ops.pool import TILE_PX, Kind
from torchdelta.plan.draft import Draft
from torchdelta.plan.lowering import (
    HALVES,
    NO_FORM,
    Args,
    Lowering,
    Rule,
    factors_of,
    is_map,
    is_vector,
    need,
    pair,
    source,
)


def _tensors(low: Lowering, **weights: Any) -> dict[str, Tensor]:
    out = {}
    for name, w in weights.items():
        if w is None:
            continue
        need(isinstance(w, Tensor), f"its {name} is computed from the frame")
        out[name] = w.to(low.weight_dtype)
    return out


def _dropout(low: Lowering, a: Args) -> Any:
    # one that draws random numbers is refused before
    return a["input"]


def _native_dropout(low: Lowering, a: Args) -> Any:
    return a["input"], torch.ones(a["input"].whole, dtype=torch.bool)


def _conv(low: Lowering, a: Args) -> Any:
    x, weight = a["input"], a["weight"]
    need(is_map(x), "not a 2-D convolution of one stream")
    need(isinstance(weight, Tensor) and weight.ndim == 4, "its weight is computed from the frame")
    weights = _tensors(low, weight=weight, bias=a["bias"])
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = pair(a["stride"], 1), pair(a["dilation"], 1)
    if a.get("transposed") or "transpose" in str(low.node.target):
        pad, more = pair(a["padding"], 0), pair(a["output_padding"], 0)
        op: Op = ConvTranspose2d(kernel, stride, dilation, pad, more, a["groups"])
        return low.add(op, [x], weights)
    if isinstance(a["padding"], str):
        same = [
            d * (k - 1) if a["padding"] == "same" else 0
            for d, k in zip(dilation, kernel, strict=True)
        ]
        pads = (same[0] // 2, same[0] - same[0] // 2, same[1] // 2, same[1] - same[1] // 2)
    else:
        ph, pw = pair(a["padding"], 0)
        pads = (ph, ph, pw, pw)
    return low.add(Conv2d(kernel, stride, dilation, pads, a["groups"]), [x], weights)


def _linear(low: Lowering, a: Args) -> Any:
    x, weight = a["input"], a["weight"]
    need(is_vector(x), "linear on something that is not one vector per stream")
    weights = _tensors(low, weight=weight, bias=a["bias"])
    weights["weight"] = weights["weight"][:, :, None, None]
    return low.add(Conv2d((1, 1)), [x], weights)


def _addmm(low: Lowering, a: Args) -> Any:
    need(a.get("beta", 1) == 1 and a.get("alpha", 1) == 1, "scaled matrix product")
    left, right = a.get("mat1", a.get("self")), a["mat2"]
    need(isinstance(left, Draft) and isinstance(right, Tensor), "product of two values")
    bias = a["self"] if "mat1" in a else None
    need(bias is None or isinstance(bias, Tensor), "its bias is computed from the frame")
    return _linear(low, {"input": left, "weight": right.t(), "bias": bias})


def _batch_norm(low: Lowering, a: Args) -> Any:
    x = a["input"]
    need(not a.get("training"), "batch norm in train mode mixes the streams")
    need(is_map(x) or is_vector(x), "batch norm over something that is no map or vector")
    mean, var = a["running_mean"], a["running_var"]
    need(isinstance(mean, Tensor), "batch norm without running statistics mixes the streams")
    scale = 1 / torch.sqrt(var.double() + a["eps"])
    if a["weight"] is not None:
        scale = scale * a["weight"].double()
    shift = -mean.double() * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].double()
    value = low.node.meta["val"]
    several = isinstance(value, (tuple, list))
    meta = value[0] if several else value
    weights = {"scale": scale.to(low.weight_dtype), "shift": shift.to(low.weight_dtype)}
    draft = low.add(Affine(), [x], weights, meta=meta)
    return (draft,) if several else draft


def _max_pool(low: Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "not a 2-D pool of one stream")
    kernel = pair(a["kernel_size"])
    op = MaxPool2d(
        kernel, pair(a["stride"], kernel), pair(a["padding"], 0), pair(a["dilation"], 1),
        bool(a["ceil_mode"]),
    )  # fmt: skip
    value = low.node.meta["val"]
    if not isinstance(value, (tuple, list)):
        return low.add(op, [x])
    need(all(user.args[1] == 0 for user in low.node.users), "the indices of a max pool are used")
    return (low.add(op, [x], meta=value[0]),)


def _avg_pool(low: Lowering, a: Args) -> Any:
    x = a["self"]
    need(is_map(x), "not a 2-D pool of one stream")
    kernel = pair(a["kernel_size"])
    op = AvgPool2d(
        kernel, pair(a["stride"], kernel), pair(a["padding"], 0), (1, 1), bool(a["ceil_mode"]),
        bool(a["count_include_pad"]), a["divisor_override"],
    )  # fmt: skip
    return low.add(op, [x])


def _global(low: Lowering, x: Draft, how: Kind, whole: tuple[int, ...] | None = None) -> Draft:
    c, h, w = x.shape
    tiles = (1, c, -(-h // TILE_PX), -(-w // TILE_PX))
    part = low.add(TileReduce(how), [x], whole=tiles, dtype=low.weight_dtype)
    if whole is None:
        return low.add(GlobalReduce(how, h * w), [part])
    return low.add(GlobalReduce(how, h * w), [part], whole=whole)


def _adaptive(how: Kind) -> Rule:
    def rule(low: Lowering, a: Args) -> Any:
        x = a["self"]
        need(is_map(x), "not a 2-D pool of one stream")
        c, h, w = x.shape
        size = pair(a["output_size"])
        value = low.node.meta["val"]
        several = isinstance(value, (tuple, list))
        need(
            not several or all(user.args[1] == 0 for user in low.node.users),
            "the indices of a max pool are used",
        )
        whole = (1, c, *size)
        if size == (h, w):
            draft = x
        elif size == (1, 1):
            draft = _global(low, x, how, whole)
        else:
            draft = low.add(AdaptivePool2d(size, how), [x], whole=whole)
        return (draft,) if several else draft

    return rule


def _reduce_hw(how: Kind) -> Rule:
    def rule(low: Lowering, a: Args) -> Any:
        x, dims = a["self"], a.get("dim")
        need(is_map(x), f"{how} of something that is no map")
        dims = [dims] if isinstance(dims, int) else list(dims or [])
        need(
            sorted(d % 4 for d in dims) == [2, 3],
            f"{how} over the axes {dims}, not height and width",
        )
        need(a.get("dtype") is None, "it casts")
        return _global(low, x, how)

    return rule


def _bilinear(low: Lowering, a: Args) -> Any:
    x = source(a)
    need(is_map(x), "not a map of one stream")
    h, w = factors_of(a)
    factors = (h, w) if h is not None and w is not None else None
    size = (low.whole[2], low.whole[3])
    return low.add(Bilinear(size, bool(a["align_corners"]), factors), [x])


def _binary(fn: str) -> Rule:
    def rule(low: Lowering, a: Args) -> Any:
        left: Any = a["self"]
        right: Any = a.get("other", a.get("exponent"))
        need(a.get("rounding_mode") is None, "division with rounding")
        alpha = 1.0 if a.get("alpha") is None else float(a["alpha"])
        drafts = [d for d in (left, right) if isinstance(d, Draft)]
        need(
            low.node.meta["val"].dtype in HALVES and all(d.dtype is None for d in drafts),
            "not in floating point",
        )
        if len(drafts) == 2:
            fits = left.whole == right.whole or (is_map(left) and is_map(right))
            need(fits, f"broadcast of {list(left.whole)} and {list(right.whole)}")
            return low.add(Binary(fn, alpha), [left, right])
        (x,) = drafts
        const = right if x is left else left
        return _with_const(low, fn, x, const, alpha, const_first=x is right)

    return rule


def _with_const(
    low: Lowering, fn: str, x: Draft, const: Any, alpha: float, const_first: bool
) -> Draft:
    need(low.whole == x.whole, "a constant that enlarges the value")
    t = const if isinstance(const, Tensor) else torch.tensor(float(const), dtype=torch.float64)
    need(not t.is_complex(), "complex numbers")
    t = t.to(low.weight_dtype)
    if alpha != 1.0:
        need(not const_first, "a scaled value is taken from a constant")
        t = t * alpha
    if t.numel() == 1:
        return low.add(BinaryConst(fn, float(t), const_first), [x])
    if is_map(x):
        t = t.reshape((1,) * (4 - t.ndim) + tuple(t.shape))[0].permute(1, 2, 0)
    else:
        t = t.expand(x.whole).reshape(1, 1, -1)
    op = BinaryConst(fn, None, const_first, per_position=t.shape[0] > 1 or t.shape[1] > 1)
    return low.add(op, [x], {"const": t.contiguous()})


def _rsub(low: Lowering, a: Args) -> Any:
    need(a.get("alpha") in (None, 1), "scaled subtraction")
    return _binary("sub")(low, {"self": a["other"], "other": a["self"]})


def unary(low: Lowering, a: Args) -> Any:
    """Lower an elementwise function of one value, with plain numbers as arguments."""
    x = source(a)
    need(x.dtype is None, "not in floating point")
    need(not any(isinstance(v, Tensor) for v in a.values()), "with a tensor as argument")
    target: Any = low.node.target
    schema = target._schema.arguments
    need(isinstance(a[schema[0].name], Draft), "with a value as argument")
    rest = list(schema[1:])
    args = tuple(a[arg.name] for arg in rest if not arg.kwarg_only)
    kwargs = tuple((arg.name, a[arg.name]) for arg in rest if arg.kwarg_only)
    return low.add(Pointwise(low.op_name, args, kwargs), [x])


def _pow(low: Lowering, a: Args) -> Any:
    need(isinstance(a["self"], Draft), "a constant to the power of a value")
    return _binary("pow")(low, a)


def _prelu(low: Lowering, a: Args) -> Any:
    x, slope = a["self"], a["weight"]
    need(is_map(x) or is_vector(x), "prelu of something that is no map or vector")
    need(isinstance(slope, Tensor), "its slope is computed from the frame")
    return low.add(Pointwise("prelu"), [x], {"slope": slope.to(low.weight_dtype).flatten()})


def _softmax(log: bool) -> Rule:
    def rule(low: Lowering, a: Args) -> Any:
        x = source(a)
        need(is_map(x) or is_vector(x), "softmax of something that is no map or vector")
        need(a["dim"] % len(x.whole) == 1, "softmax over another axis than the channels")
        return low.add(Softmax(log), [x])

    return rule


def _attention(low: Lowering, a: Args) -> Any:
    """Make attention that was captured for one kind of device what PyTorch runs on any."""
    if any(user.args[1] != 0 for user in low.node.users):
        raise CaptureError("other results of attention than the first are used")
    target = torch.ops.aten.scaled_dot_product_attention.default
    mask = a.get("attn_mask", a.get("attn_bias"))
    args = [a["query"], a["key"], a["value"], mask, 0.0, a["is_causal"]]
    return (low.dense(target, args, {"scale": a["scale"]}, low.node.meta["val"][0], NO_FORM),)


COMPUTE: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout
    ),
    "native_dropout": _native_dropout,
    **dict.fromkeys(("conv2d", "convolution", "conv_transpose2d"), _conv),
    "linear": _linear,
    **dict.fromkeys(("addmm", "mm"), _addmm),
    **dict.fromkeys(
        (
            "batch_norm",
            "native_batch_norm",
            "_native_batch_norm_legit_no_training",
            "_native_batch_norm_legit",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool),
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive("avg")),
    "adaptive_max_pool2d": _adaptive("max"),
    "mean": _reduce_hw("avg"),
    "amax": _reduce_hw("max"),
    "upsample_bilinear2d": _bilinear,
    **{fn: _binary(fn) for fn in BINARY if fn != "pow"},
    "rsub": _rsub,
    "pow": _pow,
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("softmax", "_softmax"), _softmax(log=False)),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _softmax(log=True)),
}
