"""Elementwise functions: their names, what PyTorch calls them, and what kernels compute for them.

Kernels have fewer functions than ATen: `kernel_function` translates. Which of them an engine has,
its kernels say (`engines.cpu.bind.names`, `engines.triton.kernels.shared`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# ATen's functions of one tensor that a step may run, by their ATen name
POINTWISE: dict[str, Callable[..., Tensor]] = {
    name: getattr(aten, name)
    for name in (
        "abs acos acosh asin asinh atan atanh ceil celu clamp clamp_max clamp_min cos cosh elu "
        "erf exp expm1 floor gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log "
        "log10 log1p log2 log_sigmoid mish neg reciprocal relu relu6 round rsqrt selu sigmoid "
        "sign silu sin sinh softplus softshrink sqrt square tan tanh threshold trunc"
    ).split()
}
# the same for two tensors
BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
}
# of SELU (Klambauer et al., NIPS 2017)
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


@dataclass(frozen=True)
class Function:
    """What a kernel computes, with its arguments.

    clamp: to a .. b;  leaky_relu: slope a;  prelu: slopes per channel, which are weights;  elu:
    alpha a, scale b, input scale c;  threshold: x > a ? x : b;  hardshrink, softshrink: lambda a;
    softplus: beta a, threshold b;  gelu_erf, gelu_tanh: GELU, exact and approximated
    """

    name: str
    args: tuple[float, ...] = ()


def kernel_function(
    fn: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Function | None:
    """Say what a kernel computes for ATen's function and the arguments behind its tensor.

    None where no kernel could: `round` to decimals.
    """
    named = kwargs or {}

    def arg(position: int, name: str, default: float) -> float:
        got = args[position] if len(args) > position else named.get(name)
        return default if got is None else float(got)

    match fn:
        case "relu6":
            return Function("clamp", (0.0, 6.0))
        case "hardtanh":
            return Function("clamp", (arg(0, "min_val", -1.0), arg(1, "max_val", 1.0)))
        case "clamp":
            return Function("clamp", (arg(0, "min", -math.inf), arg(1, "max", math.inf)))
        case "clamp_min":
            return Function("clamp", (arg(0, "min", -math.inf), math.inf))
        case "clamp_max":
            return Function("clamp", (-math.inf, arg(0, "max", math.inf)))
        case "selu":
            return Function("elu", (SELU_ALPHA, SELU_SCALE, 1.0))
        case "celu":
            alpha = arg(0, "alpha", 1.0)
            return Function("elu", (alpha, 1.0, 1.0 / alpha))
        case "elu":
            given = arg(0, "alpha", 1.0), arg(1, "scale", 1.0), arg(2, "input_scale", 1.0)
            return Function("elu", given)
        case "gelu":
            kind = args[0] if args else named.get("approximate", "none")
            return Function("gelu_tanh" if kind == "tanh" else "gelu_erf")
        case "leaky_relu":
            return Function(fn, (arg(0, "negative_slope", 0.01),))
        case "threshold":
            return Function(fn, (arg(0, "threshold", 0.0), arg(1, "value", 0.0)))
        case "hardshrink" | "softshrink":
            return Function(fn, (arg(0, "lambd", 0.5),))
        case "softplus":
            return Function(fn, (arg(0, "beta", 1.0), arg(1, "threshold", 20.0)))
        case "round" if args or named.get("decimals"):
            return None
    return Function(fn)
