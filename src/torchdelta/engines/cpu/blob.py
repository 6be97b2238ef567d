"""A plan as bytes for the native engine; `native/src/program.cpp` reads them.

The stream consists of 8-byte words, int64 or double; arrays stand as a count and float32 or int32
numbers, filled up to whole words. What an operation's numbers mean is said where they are written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdelta import ops
from torchdelta.engines.cpu.bind import code_of, names
from torchdelta.ops.base import Axis, Footprint, Op
from torchdelta.ops.functions import Function
from torchdelta.ops.pool import TILE_PX
from torchdelta.plan import Plan
from torchdelta.plan.ir import Activation, Residual, Step

MAGIC = 0x31474F5250445400

# channels from which transforming a tile costs little beside multiplying it, and pairs of channels
# for each pixel of the map up to which reading the larger weights does
LEAST_TILED, WEIGHTS_PER_PX = 16, 64

# height and width that a native list of pixels can hold (`Pixel` in kernels.h)
MOST_PX = 65535


@dataclass
class Params:
    """What an operation is given."""

    code: str
    ints: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    arrays: list[Tensor | None] = field(default_factory=list)
    indices: list[Iterable[int]] = field(default_factory=list)


def native_function(op: ops.Pointwise) -> Function | None:
    """Give what the native kernels compute for an operation; None where they cannot."""
    function = op.kernel
    return function if function and function.name in names("functions") else None


def in_tiles(plan: Plan, step: Step) -> bool:
    """Whether a convolution is computed in tiles of 2x2 outputs where a tolerance allows it.

    Winograd's F(2x2, 3x3) needs less than half of the multiply-adds, and 16 weights instead of 9
    for each pair of channels: it pays where the map has many pixels for each weight.
    """
    op = step.op
    if not isinstance(op, ops.Conv2d) or op.groups != 1:
        return False
    if (op.kernel, op.stride, op.dilation) != ((3, 3), (1, 1), (1, 1)):
        return False
    channels = plan.values[step.inputs[0]].channels, plan.values[step.output].channels
    area = math.prod(plan.values[step.output].size)
    return min(channels) >= LEAST_TILED and math.prod(channels) <= WEIGHTS_PER_PX * area


def _conv(plan: Plan, step: Step) -> Params:
    op = step.op
    assert isinstance(op, (ops.Conv2d, ops.ConvTranspose2d))
    pad = (op.pad[0], op.pad[2]) if isinstance(op, ops.Conv2d) else op.pad
    # kernel, stride, dilation (h, w each), padding at the top and at the left, groups, tiles
    tiles = int(in_tiles(plan, step))
    return Params(
        op.name, [*op.kernel, *op.stride, *op.dilation, *pad, op.groups, tiles],
        arrays=[step.weights["weight"], step.weights.get("bias")],
    )  # fmt: skip


def _pool(plan: Plan, step: Step) -> Params:
    op = step.op
    assert isinstance(op, (ops.MaxPool2d, ops.AvgPool2d))
    with_pad = isinstance(op, ops.AvgPool2d) and op.count_include_pad
    divisor = op.divisor or 0 if isinstance(op, ops.AvgPool2d) else 0
    return Params(op.name, [*op.kernel, *op.stride, *op.pad, *op.dilation, int(with_pad), divisor])


def _adaptive(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.AdaptivePool2d)
    return Params(f"adaptive_{step.op.how}")


def _tile(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.TileReduce)
    return Params("tile_sum" if step.op.how == "avg" else "tile_max", [TILE_PX])


def _global(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.GlobalReduce)
    return Params(f"global_{step.op.how}", [step.op.area])


def _pointwise(plan: Plan, step: Step) -> Params | None:
    assert isinstance(step.op, ops.Pointwise)
    function = native_function(step.op)
    if function is None:
        return None
    slope = _slope(step.weights, plan.values[step.output].channels)
    return Params("pointwise", [code_of("functions", function.name)], _four(function.args), [slope])


def _affine(plan: Plan, step: Step) -> Params:
    return Params("affine", arrays=[step.weights["scale"], step.weights["shift"]])


def _binary(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.Binary)
    return Params("binary", [code_of("pairs", step.op.fn)], [step.op.alpha])


def _constant(plan: Plan, step: Step) -> Params:
    op = step.op
    assert isinstance(op, ops.BinaryConst)
    const = step.weights.get("const") if op.scalar is None else None
    shape = (1, 1, 1) if const is None else tuple(const.shape)
    return Params(
        "constant", [code_of("pairs", op.fn), int(op.const_first), int(const is None), *shape],
        [op.scalar or 0.0], [const],
    )  # fmt: skip


def _softmax(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.Softmax)
    return Params("log_softmax" if step.op.log else "softmax")


def _bilinear(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, ops.Bilinear)
    places = [step.op.source(a, plan.values[step.inputs[0]].size[a]) for a in (0, 1)]
    return Params(
        "bilinear",
        arrays=[weight for _, _, weight in places],
        indices=[index.tolist() for low, high, _ in places for index in (low, high)],
    )


def _remap(plan: Plan, step: Step) -> Params:
    op = step.op
    assert isinstance(op, ops.Remap)
    return Params(
        "remap", floats=[op.fill],
        indices=[i or () for i in (op.rows_from, op.cols_from, op.channels_from)],
    )  # fmt: skip


def _shuffle(plan: Plan, step: Step) -> Params:
    assert isinstance(step.op, (ops.PixelShuffle, ops.PixelUnshuffle))
    return Params(step.op.name, [step.op.factor])


def _reshape(plan: Plan, step: Step) -> Params:
    op = step.op
    assert isinstance(op, ops.Reshape)
    return Params("reshape", [len(op.shape_in), *op.shape_in, len(op.shape_out), *op.shape_out])


def _copy(plan: Plan, step: Step) -> Params:
    return Params("copy")


WRITERS: dict[type[Op], Callable[[Plan, Step], Params | None]] = {
    ops.Conv2d: _conv,
    ops.ConvTranspose2d: _conv,
    ops.MaxPool2d: _pool,
    ops.AvgPool2d: _pool,
    ops.AdaptivePool2d: _adaptive,
    ops.TileReduce: _tile,
    ops.GlobalReduce: _global,
    ops.Pointwise: _pointwise,
    ops.Affine: _affine,
    ops.Binary: _binary,
    ops.BinaryConst: _constant,
    ops.Softmax: _softmax,
    ops.Bilinear: _bilinear,
    ops.Remap: _remap,
    ops.PixelShuffle: _shuffle,
    ops.PixelUnshuffle: _shuffle,
    ops.Reshape: _reshape,
    ops.Copy: _copy,
}


def foreign_reason(plan: Plan, step: Step) -> str | None:
    """Say why a step is left to PyTorch; None for a step with a native kernel."""
    if isinstance(step.op, ops.Dense):
        return step.reason or "dense"
    if type(step.op) not in WRITERS or WRITERS[type(step.op)](plan, step) is None:
        return f"no native {step.op.describe() or step.op.name}"
    if max(plan.values[step.output].size) > MOST_PX:
        return f"its map is larger than {MOST_PX} px"
    for part in step.epilogue:
        if isinstance(part, Activation) and native_function(part.op) is None:
            return f"no native {part.op.fn}"
    for value in (step.output, *step.inputs):
        sums = step.op.gives_sums if value == step.output else step.op.takes_sums
        if plan.values[value].dtype != (torch.float32 if sums else None):
            return f"its numbers are {plan.values[value].dtype}"
    return None


def _four(args: tuple[float, ...]) -> list[float]:
    return [*args, *(0.0,) * (4 - len(args))]


def _slope(weights: Any, channels: int) -> Tensor | None:
    """Give PReLU's slopes, one per channel."""
    slope = weights.get("slope")
    return None if slope is None else slope.flatten().expand(channels)


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def words(self, *numbers: int) -> None:
        self.parts.append(struct.pack(f"<{len(numbers)}q", *map(int, numbers)))

    def number(self, number: float) -> None:
        self.parts.append(struct.pack("<d", number))

    def floats(self, numbers: Any) -> None:
        self._array(_floats(numbers))

    def integers(self, numbers: Iterable[int]) -> None:
        self._array(np.asarray(list(numbers), dtype=np.int32))

    def _array(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).tobytes()
        self.words(array.size)
        self.parts += [data, bytes(-len(data) % 8)]

    def axis(self, axis: Axis) -> None:
        window = axis.table is None
        self.words(window, axis.n_in, axis.n_out, axis.kernel, axis.stride, axis.dilation, axis.pad)
        if not window:
            self.integers(axis.taps.flatten())

    def footprint(self, footprint: Footprint) -> None:
        if footprint.everything:
            self.words(1)
        elif footprint.rows is None or footprint.cols is None:
            self.words(0)
        else:
            self.words(2)
            self.axis(footprint.rows)
            self.axis(footprint.cols)

    def part(self, part: Residual | Activation, channels: int) -> None:
        if isinstance(part, Residual):
            self.words(1, code_of("pairs", part.op.fn))
            args: tuple[float, ...] = (part.op.alpha,)
            index, first, slope = part.index, part.first, None
        else:
            function = native_function(part.op)
            assert function is not None
            self.words(0, code_of("functions", function.name))
            args, index, first = function.args, 0, False
            slope = _slope(part.weights, channels)
        for number in _four(args):
            self.number(number)
        self.words(index, first)
        self.floats(slope)


def _floats(numbers: Any) -> np.ndarray:
    if numbers is None:
        return np.zeros(0, np.float32)
    if isinstance(numbers, Tensor):
        numbers = numbers.detach().cpu().float().flatten().numpy()
    return np.asarray(numbers, dtype=np.float32)


def write_program(plan: Plan, dtype: torch.dtype, reported: Iterable[int]) -> bytes:
    """Write a plan.

    dtype:    compute dtype, float32 or bfloat16
    reported: values whose change masks the engine hands out
    """
    out = _Writer()
    out.words(MAGIC, dtype == torch.bfloat16)
    _write_input(out, plan)
    out.words(len(plan.buffers))
    for buffer in plan.buffers:
        item = buffer.dtype or dtype
        kind = 0 if buffer.dtype is None else 1 if item == torch.float32 else 2
        out.words(buffer.h, buffer.w, buffer.c, kind, item.itemsize)
    out.words(len(plan.values))
    for value in plan.values:
        out.words(value.buffer, value.offset, *value.size, value.channels)
        out.integers(value.owners)
    out.integers(reported)
    out.words(len(plan.steps))
    for step in plan.steps:
        _write_step(out, plan, step)
    return b"".join(out.parts)


def _write_input(out: _Writer, plan: Plan) -> None:
    c, h, w = plan.shape
    pre = plan.preprocess
    out.words(plan.input, h, w, c, pre.color == "bgr")
    mean = np.zeros(c) if pre.mean is None else np.array(pre.mean, np.float64)
    std = np.ones(c) if pre.std is None else np.array(pre.std, np.float64)
    for scale, shift in (((pre.hi - pre.lo) / 255, pre.lo), (1.0, 0.0)):
        out.floats(np.full(c, scale) / std)
        out.floats((shift - mean) / std)
    # the input gate takes the mean over the channels
    out.floats(np.array(pre.per_full_scale(c)) / c)


def _write_step(out: _Writer, plan: Plan, step: Step) -> None:
    params = None if foreign_reason(plan, step) else WRITERS[type(step.op)](plan, step)
    if params is None:
        params = Params("foreign")
    out.words(code_of("operations", params.code), step.output)
    out.integers(step.inputs)
    out.words(step.arity)
    for footprint in step.footprints:
        out.footprint(footprint)
    epilogue = () if params.code == "foreign" else step.epilogue
    out.words(len(epilogue))
    for part in epilogue:
        out.part(part, plan.values[step.output].channels)
    out.words(len(params.ints), *params.ints)
    out.floats(params.floats)
    out.words(len(params.arrays))
    for array in params.arrays:
        out.floats(array)
    out.words(len(params.indices))
    for index in params.indices:
        out.integers(index)
