"""Convolutions' weights, packed once per engine, and the tiles in which they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from torchdelta.engines.triton.gpu import Gpu
from torchdelta.engines.triton.kernels.shared import FUNCTIONS, GROUP, JOINS
from torchdelta.ops import Conv2d, ConvTranspose2d
from torchdelta.plan import Plan
from torchdelta.plan.ir import Activation, Residual, Step

# channels below which a step of the sum takes several taps
FEW_CHANNELS = 16
# taps along an axis that the kernels can keep track of
MOST_TAPS_ACROSS = 63
# of a group, where the convolution has no groups: no block of outputs begins later
NO_GROUP = 1 << 30
# pixels per stream that a split is made for, as a share of the map: short lists need it most
TYPICAL_SHARE = 0.05
# programs that a short list should give work to, and most parts of a sum
WANTED_PROGRAMS = 64
MOST_SPLITS = 4


@dataclass(frozen=True)
class Blocks:
    """Pixels of a kernel's tiles, and up to which list's length the smaller ones are taken.

    stages: of the software pipelines of the small, middle and large tiles
    width:  output channels of a tile, a multiple of those that lie together in the weights
    """

    small_m: int
    middle_m: int
    large_m: int
    small_rows: int
    middle_rows: int
    stages: tuple[int, int, int]
    width: int
    warps: int = 4

    def split_tiles(self, capacity: int) -> tuple[int, int]:
        """Tiles whose sums are cut into parts, in one block of channels, and their pixels."""
        small = ceil(min(self.small_rows, capacity) / self.small_m)
        middle = ceil(min(self.middle_rows, capacity) / self.middle_m)
        return max(small, middle), max(small * self.small_m, middle * self.middle_m)


@dataclass(frozen=True)
class Phase:
    """A convolution with regular taps; a transposed one is several of them.

    num … step: place of a tap in the input, (y, x) each (see `kernels.convolution`)
    """

    weight: Tensor
    taps: tuple[int, int]
    num: tuple[int, int]
    den: tuple[int, int]
    bias: tuple[int, int]
    first: tuple[int, int]
    step: tuple[int, int]


@dataclass(frozen=True)
class Packed:
    """A step's weights on the device, and how its sum is cut.

    channels: input channels of one product; chunk: numbers of one step of the sum; gather: what
    such a step takes ("channels", "row", "each": see `kernels._multiply`); width: output channels
    that lie together in the packed weights; depthwise: weights are [taps, channels]
    """

    phases: tuple[Phase, ...]
    bias: Tensor | None
    slope: Tensor | None
    channels: int
    chunk: int
    width: int
    gather: str
    splits: int
    split_steps: int
    in_group: int
    out_group: int
    last_channel: int
    depthwise: bool

    @property
    def bytes(self) -> int:
        """Bytes of everything that lies on the device."""
        held = [*(phase.weight for phase in self.phases), self.bias, self.slope]
        return sum(w.numel() * w.element_size() for w in held if w is not None)


def epilogue_parts(step: Step) -> tuple[list[Activation], Residual | None, list[Activation]]:
    """Split a step's epilogue at its residual: before, the residual, after."""
    before: list[Activation] = []
    after: list[Activation] = []
    residual: Residual | None = None
    for part in step.epilogue:
        if isinstance(part, Residual):
            residual = part
        else:
            (before if residual is None else after).append(part)
    if residual is None:
        before, after = [], before
    return before, residual, after


def refusal(plan: Plan, step: Step) -> str | None:
    """Say why no kernel here computes a convolution; None where one does."""
    before, residual, after = epilogue_parts(step)
    if len(before) > 1 or len(after) > 1:
        return "several activations in a row"
    for part in (*before, *after):
        function = part.op.kernel
        if function is None or function.name not in FUNCTIONS:
            return f"no kernel computes {part.op.fn}"
    if isinstance(step.op, Conv2d) and max(step.op.kernel) > MOST_TAPS_ACROSS:
        return f"a kernel of more than {MOST_TAPS_ACROSS} taps across"
    if len([p for p in (*before, *after) if p.op.fn == "prelu"]) > 1:
        return "two PReLUs"
    if residual is not None:
        value = plan.values[step.inputs[residual.index]]
        if residual.op.fn not in JOINS:
            return f"no kernel computes {residual.op.fn}"
        if value.channels != plan.values[step.output].channels:
            return "the residual is broadcast over channels"
    return None


def pack(plan: Plan, step: Step, device: torch.device, dtype: torch.dtype) -> Packed:
    """Bring a step's weights into the kernels' order."""
    op = step.op
    assert isinstance(op, (Conv2d, ConvTranspose2d))
    weight = step.weights["weight"].float()
    if isinstance(op, ConvTranspose2d):
        # [C, Co/g, kh, kw] to [Co, C/g, kh, kw]
        weight = weight.unflatten(0, (op.groups, -1)).transpose(1, 2).flatten(0, 1)
    out_channels, per_group = weight.shape[:2]
    in_group, out_group = per_group, out_channels // op.groups
    in_channels = per_group * op.groups
    depthwise = per_group == 1 and op.groups > 1
    group = int(GROUP.value)
    width = group if out_channels >= group else max(16, _power_of_two(out_channels))
    if depthwise:

        def arrange(w: Tensor) -> Tensor:
            return w[:, 0].flatten(1).t().contiguous()

        channels, gather, chunk, splits, split_steps, last_channel = 1, "", 16, 1, 1, 0
    else:
        channels = (
            in_channels if op.groups == 1 else _union(out_channels, in_group, out_group, width)
        )
        last_channel = in_channels - channels
        gather = _gather(plan, step, channels)
        if gather == "row":
            # with the padding that lies between the pixels
            channels = padded_channels(in_channels)
        chunk = _chunk(channels, weight.shape[3], gather, dtype)

        def arrange(w: Tensor) -> Tensor:
            if op.groups > 1:
                w = _block_diagonal(w, channels, in_group, out_group, width, last_channel)
            return _pack_dense(w, channels, chunk, width, gather)

        taps = weight.shape[2] * weight.shape[3]
        steps = {
            "channels": taps * ceil(channels / chunk), "row": weight.shape[2],
            "each": ceil(taps * channels / chunk),
        }[gather]  # fmt: skip
        splits = _splits(plan.values[step.output].size, out_channels, steps)
        split_steps = ceil(steps / splits)
        splits = ceil(steps / split_steps)
    phases = tuple(
        Phase(arrange(w).to(device, dtype), (w.shape[2], w.shape[3]), *places)
        for w, places in _phases(op, weight)
    )

    def move(name: str, weights: Mapping[str, Tensor]) -> Tensor | None:
        return weights[name].to(device, dtype).contiguous() if name in weights else None

    slopes = [
        p.weights["slope"].flatten().expand(out_channels)
        for p in step.epilogue
        if isinstance(p, Activation) and p.op.fn == "prelu"
    ]
    return Packed(
        phases, move("bias", step.weights),
        slopes[0].to(device, dtype).contiguous() if slopes else None,
        channels, chunk, width, gather, splits, split_steps, in_group if op.groups > 1 else 0,
        out_group if op.groups > 1 else NO_GROUP, last_channel, depthwise,
    )  # fmt: skip


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def padded_channels(channels: int) -> int:
    """Give the room that the network's input has for a pixel: whole words for a few channels."""
    return 4 if channels == 3 else channels


def _gather(plan: Plan, step: Step, channels: int) -> str:
    """Choose what a step of a sum takes: channels of a tap, a row of taps, or single numbers."""
    if channels >= FEW_CHANNELS:
        return "channels"
    value = plan.values[step.inputs[0]]
    op = step.op
    if not isinstance(op, Conv2d) or op.groups > 1 or op.dilation[1] > 1:
        return "each"
    # only there are the numbers of neighbouring pixels known to lie side by side
    alone = plan.buffers[value.buffer].c == value.channels
    return "row" if value.index == plan.input and alone else "each"


def _chunk(channels: int, taps_w: int, gather: str, dtype: torch.dtype) -> int:
    """Choose how many numbers a step of the sum takes: many, with little left over."""
    if gather == "row":
        return max(16, _power_of_two(taps_w * channels))
    if gather == "each":
        return 32 if dtype.itemsize == 2 else 16
    most = 64 if dtype.itemsize == 2 else 32
    sizes = [size for size in (64, 32, 16) if size <= most]
    waste = {size: ceil(channels / size) * size for size in sizes}
    return max(size for size in sizes if waste[size] <= 1.15 * min(waste.values()))


def _splits(size: tuple[int, int], channels: int, steps: int) -> int:
    """Choose the parts of a sum: so many that a short list keeps the device busy.

    Only the plan decides, never the length of a list or the number of streams: the order of
    summation is the same whatever else runs (design: P4).
    """
    rows = max(1, round(TYPICAL_SHARE * size[0] * size[1]))
    tiles = ceil(rows / 32) * ceil(channels / 64)
    return max(1, min(MOST_SPLITS, steps // 4, WANTED_PROGRAMS // tiles))


def _union(out_channels: int, in_group: int, out_group: int, width: int) -> int:
    """Count the input channels that a block of `width` outputs reads at most."""
    most = 0
    for first in range(0, out_channels, width):
        last = min(first + width, out_channels) - 1
        most = max(most, (last // out_group + 1 - first // out_group) * in_group)
    return most


def _block_diagonal(
    w: Tensor, channels: int, in_group: int, out_group: int, width: int, last_channel: int
) -> Tensor:
    """Spread the weights [Co, C/g, kh, kw] of groups over the channels that a block reads."""
    out = w.new_zeros(w.shape[0], channels, *w.shape[2:])
    for c in range(w.shape[0]):
        first = min((c // width * width // out_group) * in_group, last_channel)
        begin = (c // out_group) * in_group - first
        out[c, begin : begin + in_group] = w[c]
    return out


def _pack_dense(w: Tensor, channels: int, chunk: int, width: int, gather: str) -> Tensor:
    """Arrange weights [Co, C, kh, kw] as [Co / width, steps * chunk, width], filled up with 0."""
    out_channels = w.shape[0]
    # [kh, kw, channels, Co]
    rows = nn.functional.pad(w.permute(2, 3, 1, 0), (0, 0, 0, channels - w.shape[1]))
    if gather == "channels":
        rows = rows.flatten(0, 1)
    elif gather == "row":
        rows = rows.flatten(1, 2)
    else:
        rows = rows.flatten(0, 2).unsqueeze(0)
    padded = ceil(rows.shape[1] / chunk) * chunk
    blocks = ceil(out_channels / width)
    full = w.new_zeros(rows.shape[0], padded, blocks * width)
    full[:, : rows.shape[1], :out_channels] = rows
    return full.reshape(-1, blocks, width).transpose(0, 1).contiguous()


def _phases(op: Conv2d | ConvTranspose2d, weight: Tensor) -> list[tuple[Tensor, tuple[Any, ...]]]:
    """Cut a convolution into those with regular taps: weights, and num, den, bias, first, step."""
    if isinstance(op, Conv2d):
        first = (-op.pad[0], -op.pad[2])
        return [(weight, (op.stride, (1, 1), (0, 0), first, op.dilation))]
    phases = []
    for y in range(op.stride[0]):
        for x in range(op.stride[1]):
            rows, first_y, step_y = _phase_taps(op, 0, y)
            cols, first_x, step_x = _phase_taps(op, 1, x)
            part = weight[:, :, rows][:, :, :, cols]
            if not rows or not cols:
                # nothing is scattered there but the bias
                part, first_y, first_x = torch.zeros_like(weight[:, :, :1, :1]), 0, 0
            places = ((1, 1), op.stride, (-y, -x), (first_y, first_x), (step_y, step_x))
            phases.append((part, places))
    return phases


def _phase_taps(op: ConvTranspose2d, axis: int, phase: int) -> tuple[list[int], int, int]:
    """Find the taps that meet outputs o = phase (mod stride), where they begin, and their step.

    Output o = v * stride + phase reads input v + (phase + pad - i * dilation) / stride.
    """
    s, p, d, k = op.stride[axis], op.pad[axis], op.dilation[axis], op.kernel[axis]
    taps = [i for i in range(k) if (phase + p - i * d) % s == 0]
    places = [(phase + p - i * d) // s for i in taps]
    step = places[1] - places[0] if len(places) > 1 else 1
    return taps, places[0] if places else 0, step


def choose_blocks(gpu: Gpu, packed: Packed, channels: int) -> Blocks:
    """Choose the tiles of a convolution (measured on an H200, docs/log/gpu.md)."""
    if gpu.interpreted:
        # small pictures take all paths
        return Blocks(16, 16, 32, 24, 60, (1, 1, 1), packed.width)
    columns = ceil(channels / packed.width)
    if gpu.dtype == torch.float32 and gpu.precision == "ieee":
        small, middle, large, stages = 16, 32, 64, (2, 2, 2)
    else:
        small, middle, large, stages = 32, 64, 128, (5, 4, 3)
        if packed.gather == "each":
            # single numbers are gathered, each with an address of its own
            middle, large = 32, 64
    # what a short sum does not have need not be fetched ahead
    steps = max(phase.weight.shape[1] // packed.chunk for phase in packed.phases)
    most = steps + 1
    stages = min(stages[0], most), min(stages[1], most), min(stages[2], most)
    # a kind of tile is large enough when there are still enough of them for the device
    small_rows = small * 2 * gpu.processors // (columns * packed.splits)
    middle_rows = large * gpu.processors // columns
    return Blocks(
        small, middle, large, small_rows, max(small_rows, middle_rows), stages, packed.width
    )
