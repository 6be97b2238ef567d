"""Launches of all steps but convolutions: translates an operation's parameters into arguments.

Sizes of blocks, numbers of warps and tables follow from the plan alone, so a pixel's result depends
neither on the session's other streams nor on what else is active.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdelta import ops
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.kernels import move, pointwise, pool, resize
from torchdelta.engines.triton.kernels.shared import FUNCTIONS, JOINS
from torchdelta.engines.triton.launch import Launch, divider
from torchdelta.engines.weights import Weights
from torchdelta.ops.base import Op
from torchdelta.ops.functions import Function
from torchdelta.ops.pool import TILE_PX
from torchdelta.plan import Plan
from torchdelta.plan.ir import GROUP_CHANNELS, Activation, Residual, Step

# dtypes that are computed with, and those that are moved
MATHS = (torch.float32, torch.float16, torch.bfloat16, None)
MOVED = (*MATHS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOVES = (ops.Remap, ops.PixelShuffle, ops.PixelUnshuffle, ops.Reshape, ops.Copy)
# numbers in a block: one 16-byte load of half precision per thread of four warps
BLOCK_NUMBERS = 1024
# channels that a softmax holds in one block
SOFTMAX_CHANNELS = 8192
# windows of more taps are reduced one at a time, this many taps at once
FEW_TAPS, MOST_PARTS = 32, 128

Args = dict[str, Any]


def refusal(plan: Plan, step: Step) -> str | None:
    """Say why no kernel here computes a step; None where one does."""
    op = step.op
    if type(op) not in BUILDERS:
        return step.reason or f"no kernel for {op.name}"
    dtypes = {plan.values[v].dtype for v in (step.output, *step.inputs)}
    if isinstance(op, MOVES):
        if len(dtypes) > 1 or not dtypes <= set(MOVED):
            return f"its numbers are {_names(dtypes)}"
    elif not dtypes <= set(MATHS):
        return f"its numbers are {_names(dtypes - set(MATHS))}"
    return _parameter_refusal(plan, step)


def _parameter_refusal(plan: Plan, step: Step) -> str | None:
    op = step.op
    functions = _functions(step)
    if functions is None:
        return "an epilogue of several parts"
    for function in functions:
        known = function.kernel
        if known is None or known.name not in FUNCTIONS:
            return f"no kernel for {function.fn}"
    if isinstance(op, (ops.Binary, ops.BinaryConst)) and op.fn not in JOINS:
        return f"no kernel for {op.fn}"
    if isinstance(op, ops.Softmax) and plan.values[step.output].channels > SOFTMAX_CHANNELS:
        return f"softmax over more than {SOFTMAX_CHANNELS} channels"
    if isinstance(op, ops.Remap) and plan.values[step.output].dtype not in MATHS:
        # the kernel gets it in float32
        exact = isfinite(op.fill) and op.fill == int(op.fill) and abs(op.fill) <= 2**24
        if not exact:
            return f"fills integers with {op.fill}"
    return None


def _names(dtypes: set[torch.dtype | None]) -> str:
    return ", ".join(sorted("the session's" if d is None else str(d) for d in dtypes))


def _functions(step: Step) -> list[ops.Pointwise] | None:
    """List a step's elementwise functions; None where its epilogue is another than one of them."""
    found = [step.op] if isinstance(step.op, ops.Pointwise) else []
    for part in step.epilogue:
        if isinstance(part, Residual):
            return None
        found.append(part.op)
    slopes = [op for op in found if op.fn == "prelu"]
    alone = isinstance(step.op, MOVES) or len(step.epilogue) > 1 or len(slopes) > 1
    return None if alone and step.epilogue else found


def take_weights(plan: Plan, step: Step, weights: Weights) -> dict[str, Tensor]:
    """Take what a step's kernel reads: its weights, and the slopes [channels] of a PReLU."""
    part = _activation(step)
    own = {**step.weights, **({} if part is None else part.weights)}
    if "slope" in own:
        slope = own["slope"].flatten()
        channels = plan.values[step.output].channels
        own["slope"] = slope.expand(max(slope.numel(), channels)).contiguous()
    return {name: weights.take(w) for name, w in own.items()}


def launches(frame: Frame, index: int) -> list[Launch]:
    """Give the launches that compute a step on its list of active pixels, and publish."""
    kernel, args = BUILDERS[type(frame.plan.steps[index].op)](frame, index)
    return [_launch(frame, index, kernel, {**_epilogue(frame, index), **args})]


def publish_launches(frame: Frame, index: int, new: Tensor) -> list[Launch]:
    """Give those that publish, on a step's list, what was computed elsewhere.

    new: [slots, H, W, C], contiguous, the output's dtype; complex numbers are moved as two channels
    """
    parts: Args = {}
    if new.is_complex():
        out = frame.out_args(index)
        new = torch.view_as_real(new).flatten(-2)
        parts = {
            "out_ptr": torch.view_as_real(out["out_ptr"]).flatten(-2),
            "out_slot": 2 * out["out_slot"], "out_px": 2 * out["out_px"],
            "channels": new.shape[-1],
        }  # fmt: skip
    _, h, w, c = new.shape
    still = frame.dummy if frame.windows is None else frame.windows.still
    args = {
        "x_ptr": new, "x_slot": new.stride(0), "x_px": c, "x_h": h, "x_w": w, "x_ring_ptr": still,
    }  # fmt: skip
    return [_launch(frame, index, move.remap, {**args, **_same_places(frame, index), **parts})]


def _launch(frame: Frame, index: int, kernel: Any, args: Args) -> Launch:
    args = {**frame.list_args(index), **frame.out_args(index), **args}
    if "BN" not in args:
        args |= _block(frame, index)
    channels = frame.plan.values[frame.plan.steps[index].output].channels
    blocks = -(-frame.capacity(index) // args.get("BM", 1)) * -(-channels // args["BN"])
    # what the frame offers and a kernel does not need (an input's height) is left out
    args = {name: args[name] for name in kernel.arg_names}
    numbers = args.get("BM", args.get("BT", 1)) * args["BN"]
    warps = 8 if numbers > 4 * BLOCK_NUMBERS else 4
    return Launch(kernel, frame.programs(blocks), args, warps=warps, stages=1, step=index)


def _block(frame: Frame, index: int) -> Args:
    """Choose the pixels and channels of a block: whole gate groups, or all channels."""
    value = frame.plan.values[frame.plan.steps[index].output]
    h, w = value.size
    if h * w == 1:
        # a vector: few pixels, maybe many channels
        return {"BM": 1, "BN": min(_power_of_two(value.channels), BLOCK_NUMBERS)}
    columns = min(_power_of_two(value.channels), GROUP_CHANNELS)
    return {"BM": BLOCK_NUMBERS // columns, "BN": columns}


def _power_of_two(n: int) -> int:
    """Round up to a power of two, at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def _first_input(frame: Frame, index: int) -> Args:
    return dict(frame.in_args(frame.plan.steps[index].inputs[0], "x"))


def _size_in(frame: Frame, index: int) -> tuple[int, int]:
    return frame.plan.values[frame.plan.steps[index].inputs[0]].size


def _size_out(frame: Frame, index: int) -> Args:
    h, w = frame.plan.values[frame.plan.steps[index].output].size
    return {"out_h": h, "out_w": w}


def _integers(frame: Frame, numbers: Any) -> Tensor:
    return torch.as_tensor(np.asarray(numbers), dtype=torch.int32).to(frame.gpu.device)


def _pointwise(frame: Frame, index: int) -> tuple[Any, Args]:
    step = frame.plan.steps[index]
    assert isinstance(step.op, ops.Pointwise)
    return pointwise.pointwise, {**_first_input(frame, index), **_function(step.op, "PRE", "PRE_")}


def _function(op: ops.Pointwise | None, name: str, prefix: str) -> Args:
    """Give an elementwise function and its arguments A, B, C."""
    function = Function("") if op is None else op.kernel
    assert function is not None
    numbers = (*function.args, 0.0, 0.0, 0.0)
    return {
        name: function.name,
        **dict(zip((f"{prefix}{i}" for i in "ABC"), numbers, strict=False)),
    }


def _epilogue(frame: Frame, index: int) -> Args:
    """Give the elementwise function behind an operation, and the slopes of a PReLU."""
    part = _activation(frame.plan.steps[index])
    return {
        "slope_ptr": frame.weights(index).get("slope", frame.dummy),
        **_function(None if part is None else part.op, "POST", ""),
    }


def _activation(step: Step) -> Activation | None:
    """Give what a step's epilogue is (see `refusal`)."""
    part = step.epilogue[0] if step.epilogue else None
    assert part is None or isinstance(part, Activation)
    return part


def _affine(frame: Frame, index: int) -> tuple[Any, Args]:
    weights = frame.weights(index)
    scale, shift = (weights[name].contiguous() for name in ("scale", "shift"))
    return pointwise.affine, {**_first_input(frame, index), "scale_ptr": scale, "shift_ptr": shift}


def _operand(frame: Frame, index: int, which: int, name: str) -> Args:
    """Give an operand with the strides of its axes, 0 where it is broadcast."""
    step = frame.plan.steps[index]
    value, out = frame.plan.values[step.inputs[which]], frame.plan.values[step.output]
    x = frame.in_args(value.index, "x")
    (h, w), px = value.size, x["x_px"]
    return {
        f"{name}_ptr": x["x_ptr"],
        f"{name}_slot": x["x_slot"],
        f"{name}_row": px * w if h > 1 else 0,
        f"{name}_col": px if w > 1 else 0,
        f"{name}_ch": int(value.channels == out.channels),
        f"{name}_ring_ptr": x["x_ring_ptr"],
    }


def _constant(frame: Frame, const: Tensor, name: str) -> Args:
    """Give a constant [H or 1, W or 1, C or 1] as such an operand."""
    const = const.contiguous()
    h, w, c = const.shape
    return {
        f"{name}_ptr": const,
        f"{name}_slot": 0,
        f"{name}_row": w * c if h > 1 else 0,
        f"{name}_col": c if w > 1 else 0,
        f"{name}_ch": int(c > 1),
        f"{name}_ring_ptr": frame.dummy if frame.windows is None else frame.windows.still,
    }


def _binary(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    assert isinstance(op, ops.Binary)
    operands = {**_operand(frame, index, 0, "a"), **_operand(frame, index, 1, "b")}
    return pointwise.binary, {
        **operands, **_size_out(frame, index), "FN": op.fn, "ALPHA": float(op.alpha),
    }  # fmt: skip


def _binary_const(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    assert isinstance(op, ops.BinaryConst)
    if op.scalar is not None:
        return pointwise.scalar, {
            **_first_input(frame, index),
            "number": float(op.scalar), "FN": op.fn, "NUMBER_FIRST": op.const_first,
        }  # fmt: skip
    value, const = ("b", "a") if op.const_first else ("a", "b")
    operands = {
        **_operand(frame, index, 0, value),
        **_constant(frame, frame.weights(index)["const"], const),
    }
    return pointwise.binary, {**operands, **_size_out(frame, index), "FN": op.fn, "ALPHA": 1.0}


def _softmax(frame: Frame, index: int) -> tuple[Any, Args]:
    step = frame.plan.steps[index]
    assert isinstance(step.op, ops.Softmax)
    columns = _power_of_two(frame.plan.values[step.output].channels)
    return pointwise.softmax, {
        **_first_input(frame, index), "LOG": step.op.log,
        "BM": max(1, BLOCK_NUMBERS // columns), "BN": columns,
    }  # fmt: skip


def _bilinear(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    assert isinstance(op, ops.Bilinear)
    args = {**_first_input(frame, index), **_size_out(frame, index)}
    for axis, (places, parts) in enumerate(
        (("rows_ptr", "row_parts_ptr"), ("cols_ptr", "col_parts_ptr"))
    ):
        low, high, part = op.source(axis, _size_in(frame, index)[axis])
        args[places] = torch.stack((low, high)).to(frame.gpu.device, torch.int32)
        args[parts] = part.to(frame.gpu.device)
    return resize.bilinear, args


def _same_places(frame: Frame, index: int) -> Args:
    none = torch.zeros(1, dtype=torch.int32, device=frame.gpu.device)
    return {
        **_size_out(frame, index), "rows_ptr": none, "cols_ptr": none, "channels_ptr": none,
        "fill": 0.0, "PLACES": False, "CHANNELS": False,
    }  # fmt: skip


def _copy(frame: Frame, index: int) -> tuple[Any, Args]:
    return move.remap, {**_first_input(frame, index), **_same_places(frame, index)}


def _remap(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    assert isinstance(op, ops.Remap)
    kernel, args = _copy(frame, index)
    if op.rows_from is not None or op.cols_from is not None:
        height, width = _size_in(frame, index)
        args["rows_ptr"] = _integers(frame, range(height) if op.rows_from is None else op.rows_from)
        args["cols_ptr"] = _integers(frame, range(width) if op.cols_from is None else op.cols_from)
        args |= {"fill": float(op.fill), "PLACES": True}
    if op.channels_from is not None:
        args |= {"channels_ptr": _integers(frame, op.channels_from), "CHANNELS": True}
    return kernel, args


def _pixel_shuffle(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    assert isinstance(op, (ops.PixelShuffle, ops.PixelUnshuffle))
    return move.pixel_shuffle, {
        **_first_input(frame, index), **_size_out(frame, index),
        "factor": op.factor, "UNSHUFFLE": isinstance(op, ops.PixelUnshuffle),
    }  # fmt: skip


def _reshape(frame: Frame, index: int) -> tuple[Any, Args]:
    h, w = _size_in(frame, index)
    return move.reshape, {**_first_input(frame, index), "x_hw": h * w}


def _windows(op: Op, axis: int, n_in: int, n_out: int) -> np.ndarray:
    """Find the windows along an axis: [3, n_out], first input, inputs, factor of the divisor.

    Windows are cut off at the edges of the map; the factors of both axes make the divisor.
    """
    at = np.arange(n_out)
    if isinstance(op, (ops.MaxPool2d, ops.AvgPool2d)):
        kernel, dilation, pad = op.kernel[axis], op.dilation[axis], op.pad[axis]
        begin = at * op.stride[axis] - pad
        skipped = np.maximum(0, -(begin // dilation))
        end = np.minimum(kernel, -((begin - n_in) // dilation))
        size = end - skipped
        if isinstance(op, ops.AvgPool2d):
            if op.divisor is not None:
                size = np.full(n_out, op.divisor if axis == 0 else 1)
            elif op.count_include_pad:
                size = np.minimum(begin + kernel, n_in + pad) - begin
        return np.stack((begin + skipped * dilation, end - skipped, size))
    if isinstance(op, ops.AdaptivePool2d):
        first, end = at * n_in // n_out, -(-(at + 1) * n_in // n_out)
        return np.stack((first, end - first, end - first))
    if isinstance(op, ops.TileReduce):
        first, end = at * TILE_PX, np.minimum((at + 1) * TILE_PX, n_in)
        return np.stack((first, end - first, np.ones_like(at)))
    assert isinstance(op, ops.GlobalReduce)
    return np.array([[0], [n_in], [op.area if axis == 0 else 1]])


def _pool(frame: Frame, index: int) -> tuple[Any, Args]:
    op = frame.plan.steps[index].op
    maximum = isinstance(op, ops.MaxPool2d) or getattr(op, "how", None) == "max"
    out = _size_out(frame, index)
    sizes = zip(_size_in(frame, index), (out["out_h"], out["out_w"]), strict=True)
    rows, cols = (_windows(op, axis, *size) for axis, size in enumerate(sizes))
    height, width = int(rows[1].max()), int(cols[1].max())
    taps = height * width
    dilation = getattr(op, "dilation", (1, 1))
    args = {
        **_first_input(frame, index), **out,
        "rows_ptr": _integers(frame, rows), "cols_ptr": _integers(frame, cols),
        "kernel_w": width, "kernel_w_by": divider(width), "taps": taps,
        "dilation_h": dilation[0], "dilation_w": dilation[1],
        "MAX": maximum,
    }  # fmt: skip
    # a reduced map may hold one long window or one pixel only: few blocks, so taps side by side
    if taps <= FEW_TAPS and not isinstance(op, (ops.TileReduce, ops.GlobalReduce)):
        return pool.pool, args
    channels = frame.plan.values[frame.plan.steps[index].output].channels
    args["BT"] = min(_power_of_two(taps), MOST_PARTS)
    return pool.reduce, {**args, "BN": min(_power_of_two(channels), GROUP_CHANNELS)}


# the kernel of an operation, and its arguments beyond those of lists and outputs
BUILDERS: dict[type[Op], Callable[[Frame, int], tuple[Any, Args]]] = {
    ops.MaxPool2d: _pool,
    ops.AvgPool2d: _pool,
    ops.AdaptivePool2d: _pool,
    ops.TileReduce: _pool,
    ops.GlobalReduce: _pool,
    ops.Pointwise: _pointwise,
    ops.Affine: _affine,
    ops.Binary: _binary,
    ops.BinaryConst: _binary_const,
    ops.Softmax: _softmax,
    ops.Bilinear: _bilinear,
    ops.Remap: _remap,
    ops.PixelShuffle: _pixel_shuffle,
    ops.PixelUnshuffle: _pixel_shuffle,
    ops.Reshape: _reshape,
    ops.Copy: _copy,
}
