"""Pooling.

max_pool2d:  out = max over the window, -inf outside the map
avg_pool2d:  out = sum over the window / divisor; the divisor counts the padding or does not
adaptive:    window [floor(o*n/m), ceil((o+1)*n/m)) per axis
global pool: two steps, tile_reduce (one partial result per tile of 16x16) and global_reduce.
             Only touched tiles are recomputed, then all tiles are reduced in fixed order: there is
             no running sum that could drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torchdelta.ops.base import (
    EVERYTHING,
    Axis,
    Footprint,
    Op,
    Size,
    Weights,
    WindowOp,
    hwc,
    nchw,
    wide,
)

Kind = Literal["avg", "max"]

# side of a global pool's tiles, px: 256 pixels share one partial result
TILE_PX = 16


@dataclass(frozen=True)
class _Pool(WindowOp):
    kernel: Size
    stride: Size
    pad: Size = (0, 0)
    dilation: Size = (1, 1)
    ceil_mode: bool = False

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Spread a change to all windows that contain it."""
        axes = [
            Axis(in_sizes[0][a], out_size[a], self.kernel[a], self.stride[a], self.dilation[a],
                 self.pad[a])
            for a in (0, 1)
        ]  # fmt: skip
        return (Footprint.separable(axes),)

    def reach(self, axis: int, length: int) -> tuple[int, int, int]:
        """Span the windows of `length` neighbouring outputs."""
        extent = (length - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis]
        return self.stride[axis], -self.pad[axis], extent + 1

    def describe(self) -> str:
        """Say kernel and stride."""
        return f"{self.kernel[0]}x{self.kernel[1]} s{self.stride[0]}"


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    """Maximum over windows; what lies outside the map is -inf."""

    name: ClassVar[str] = "max_pool2d"

    @property
    def fill(self) -> float:
        """Nothing outside the map can be the maximum."""
        return float("-inf")

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock pool on the whole map."""
        return hwc(
            F.max_pool2d(
                nchw(inputs[0]), self.kernel, self.stride, self.pad, self.dilation, self.ceil_mode
            )
        )

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Run the stock pool on gathered tiles."""
        return F.max_pool2d(x, self.kernel, self.stride, 0, self.dilation)


@dataclass(frozen=True)
class AvgPool2d(_Pool):
    """Mean over windows."""

    name: ClassVar[str] = "avg_pool2d"
    count_include_pad: bool = True
    divisor: int | None = None

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock pool on the whole map."""
        return hwc(
            F.avg_pool2d(
                nchw(inputs[0]), self.kernel, self.stride, self.pad, self.ceil_mode,
                self.count_include_pad, self.divisor,
            )
        )  # fmt: skip

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Sum over the windows, in float32: half precision could overflow; `finish` divides."""
        return F.avg_pool2d(wide(x), self.kernel, self.stride, divisor_override=1)

    def _counts(self, axis: int, n_in: int, at: Tensor) -> Tensor:
        k, s, p = self.kernel[axis], self.stride[axis], self.pad[axis]
        begin = at * s - p
        if self.count_include_pad:
            return (begin + k).clamp(max=n_in + p) - begin
        return (begin + k).clamp(max=n_in) - begin.clamp(min=0)

    def finish(self, rows: Tensor, active: Tensor, in_size: Size, out_size: Size) -> Tensor:
        """Divide the sums [M, C] by the number of pixels that count."""
        if self.divisor is not None:
            return rows / self.divisor
        count = self._counts(0, in_size[0], active // out_size[1]) * self._counts(
            1, in_size[1], active % out_size[1]
        )
        return rows / count.unsqueeze(1).to(rows.dtype)


@dataclass(frozen=True)
class AdaptivePool2d(Op):
    """Adaptive pool to a size above 1x1; few outputs, so all are computed when one is active."""

    name: ClassVar[str] = "adaptive_pool2d"
    whole_reason: ClassVar[str] = "few outputs, windows of several sizes"
    kind: ClassVar[Literal["rows", "window", "whole"]] = "whole"
    size: Size
    how: Kind = "avg"

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """The windows hang on the size of the whole map."""
        return "windows over shares of the whole map"

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Spread a change to the windows floor(o*n/m) .. ceil((o+1)*n/m)."""
        axes = []
        for n, m in zip(in_sizes[0], out_size, strict=True):
            lo = [o * n // m for o in range(m)]
            hi = [-(-(o + 1) * n // m) - 1 for o in range(m)]
            axes.append(Axis.from_ranges(n, lo, hi))
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock pool on the whole map."""
        pool = F.adaptive_avg_pool2d if self.how == "avg" else F.adaptive_max_pool2d
        return hwc(pool(nchw(inputs[0]), self.size))

    def describe(self) -> str:
        """Say kind and size."""
        return f"{self.how} {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class TileReduce(WindowOp):
    """First half of a global pool: the sum or maximum of each tile, in float32."""

    name: ClassVar[str] = "tile_reduce"
    gated: ClassVar[bool] = False
    gives_sums: ClassVar[bool] = True
    how: Kind = "avg"

    @property
    def fill(self) -> float:
        """What stands outside the map."""
        return 0.0 if self.how == "avg" else float("-inf")

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Every pixel belongs to one tile."""
        axes = [Axis(in_sizes[0][a], out_size[a], TILE_PX, TILE_PX) for a in (0, 1)]
        return (Footprint.separable(axes),)

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """The tiles lie on the window's own grid, and those at its end are smaller."""
        return "tiles of a global pool"

    def reach(self, axis: int, length: int) -> tuple[int, int, int]:
        """Span `length` neighbouring tiles."""
        return TILE_PX, 0, length * TILE_PX

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Reduce all tiles."""
        x = nchw(inputs[0])
        h, w = x.shape[-2:]
        x = F.pad(x, (0, -w % TILE_PX, 0, -h % TILE_PX), value=self.fill)
        return hwc(self.tile(x, weights, (0, 0)))

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Reduce gathered tiles in float32, so that half-precision sums cannot overflow."""
        if self.how == "avg":
            return F.avg_pool2d(wide(x), TILE_PX, divisor_override=1)
        return F.max_pool2d(wide(x), TILE_PX)

    def describe(self) -> str:
        """Say what is reduced."""
        return f"{'sum' if self.how == 'avg' else 'max'} {TILE_PX}x{TILE_PX}"


@dataclass(frozen=True)
class GlobalReduce(Op):
    """Second half of a global pool: all tiles to one vector; `area` is the map's H * W."""

    name: ClassVar[str] = "global_reduce"
    takes_sums: ClassVar[bool] = True
    whole_reason: ClassVar[str] = "one vector"
    kind: ClassVar[Literal["rows", "window", "whole"]] = "whole"
    how: Kind = "avg"
    area: int = 1

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Any tile moves the result."""
        return (EVERYTHING,)

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """The vector is no map."""
        return "a global pool"

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Reduce all tiles, in fixed order."""
        x = inputs[0].flatten(0, 1)
        y = x.sum(0) / self.area if self.how == "avg" else torch.amax(x, 0)
        return y[None, None]

    def describe(self) -> str:
        """Say what is reduced."""
        return self.how
