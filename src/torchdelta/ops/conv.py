"""Convolutions.

conv2d:            out[y, x, o] = bias[o] + sum_{i,j,c} w[o, c, i, j] * in[y*s - p + i*d, ...]
conv_transpose2d:  out[y, x, o] = bias[o] + sum over (v, i) with v*s - p + i*d = y (same for x)
The input outside the map is 0. Footprint: the window, or its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from torchdelta.ops.base import (
    Axis,
    Footprint,
    Pixels,
    Size,
    Weights,
    WindowOp,
    hwc,
    nchw,
    take_rows,
)

Pads = tuple[int, int, int, int]


def _trim(y: Tensor, top: int, left: int, size: Size) -> Tensor:
    return y[:, :, top : top + size[0], left : left + size[1]]


def pad_nchw(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad [N, C, H, W] by (top, bottom, left, right) with one value."""
    top, bottom, left, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def take_strided(x: Pixels, active: Tensor, out_size: Size, stride: Size) -> Tensor:
    """Gather the input pixels [M, C] that the outputs of a 1x1 window read."""
    if stride == (1, 1):
        return take_rows(x, active)
    oy, ox = active // out_size[1], active % out_size[1]
    return take_rows(x, oy * (stride[0] * x.shape[1]) + ox * stride[1])


@dataclass(frozen=True)
class Conv2d(WindowOp):
    """2-D convolution (cross-correlation), any stride, dilation, groups and padding.

    weights: weight [Co, C/groups, kh, kw], bias [Co]; pad (top, bottom, left, right), all >= 0
    """

    name: ClassVar[str] = "conv2d"
    kernel: Size
    stride: Size = (1, 1)
    dilation: Size = (1, 1)
    pad: Pads = (0, 0, 0, 0)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        """Whether each output reads one input pixel: then rows are a matrix product."""
        return self.kernel == (1, 1) and self.groups == 1 and not any(self.pad)

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Spread a change to all windows that contain it."""
        if self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.pad):
            return (Footprint(),)
        axes = [
            Axis(in_sizes[0][a], out_size[a], self.kernel[a], self.stride[a], self.dilation[a],
                 self.pad[2 * a])
            for a in (0, 1)
        ]  # fmt: skip
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock convolution on the whole map."""
        x = nchw(inputs[0])
        pads = (self.pad[0], self.pad[2])
        if self.pad[0] != self.pad[1] or self.pad[2] != self.pad[3]:
            x, pads = pad_nchw(x, self.pad), (0, 0)
        return hwc(self._stock(x, weights, pads))

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Compute a 1x1 convolution at the active pixels as one matrix product."""
        assert self.pointwise
        x = take_strided(inputs[0], active, out_size, self.stride)
        return F.linear(x, weights["weight"].flatten(1), weights.get("bias"))

    def reach(self, axis: int, length: int) -> tuple[int, int, int]:
        """Span the windows of `length` neighbouring outputs."""
        extent = (length - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis]
        return self.stride[axis], -self.pad[2 * axis], extent + 1

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Run the stock convolution on gathered tiles, without padding."""
        return self._stock(x, weights, (0, 0))

    def _stock(self, x: Tensor, weights: Weights, pads: Size) -> Tensor:
        return F.conv2d(
            x, weights["weight"], weights.get("bias"), self.stride, pads, self.dilation,
            self.groups,
        )  # fmt: skip

    def macs(self, weights: Weights, out_size: Size) -> int:
        """Count Co * C/groups * kh * kw per output pixel."""
        return prod(weights["weight"].shape) * prod(out_size)

    def describe(self) -> str:
        """Say kernel, stride, dilation and groups."""
        return (
            f"{self.kernel[0]}x{self.kernel[1]}"
            + (f" s{self.stride[0]}" if self.stride != (1, 1) else "")
            + (f" d{self.dilation[0]}" if self.dilation != (1, 1) else "")
            + (f" g{self.groups}" if self.groups > 1 else "")
        )


@dataclass(frozen=True)
class ConvTranspose2d(WindowOp):
    """2-D transposed convolution.

    weights: weight [C, Co/groups, kh, kw], bias [Co]; pad (h, w) as PyTorch means it
    """

    name: ClassVar[str] = "conv_transpose2d"
    kernel: Size
    stride: Size = (1, 1)
    dilation: Size = (1, 1)
    pad: Size = (0, 0)
    output_pad: Size = (0, 0)
    groups: int = 1

    def _axis(self, a: int, n_in: int, n_out: int) -> Axis:
        s, p, d, k = self.stride[a], self.pad[a], self.dilation[a], self.kernel[a]
        taps = []
        for o in range(n_out):
            reads = [(o + p - i * d) // s for i in range(k) if (o + p - i * d) % s == 0]
            taps.append([v for v in reads if 0 <= v < n_in])
        width = max(1, max(len(t) for t in taps))
        return Axis(n_in, n_out, table=tuple(tuple(t + [-1] * (width - len(t))) for t in taps))

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Mark the outputs that a changed input is scattered to."""
        return (Footprint.separable(self._axis(a, in_sizes[0][a], out_size[a]) for a in (0, 1)),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock transposed convolution on the whole map."""
        y = F.conv_transpose2d(
            nchw(inputs[0]), weights["weight"], weights.get("bias"), self.stride, self.pad,
            self.output_pad, self.groups, self.dilation,
        )  # fmt: skip
        return hwc(y)

    @property
    def pitch(self) -> Size:
        """Outputs that are a stride apart have the same taps."""
        return self.stride

    def reach(self, axis: int, length: int) -> tuple[int, int, int]:
        """Span the inputs that are scattered to `length` outputs, from a multiple of pitch."""
        s, p, d, k = (t[axis] for t in (self.stride, self.pad, self.dilation, self.kernel))
        first = -((-(p - (k - 1) * d)) // s)
        last = (length - 1 + p) // s
        return 1, first, max(1, last - first + 1)

    def tile(self, x: Tensor, weights: Weights, out: Size) -> Tensor:
        """Run the stock operation on gathered inputs, then cut out the tile's outputs."""
        # the bias comes last: it also belongs to outputs that nothing is scattered to
        y = F.conv_transpose2d(
            x, weights["weight"], None, self.stride, 0, 0, self.groups, self.dilation
        )
        cut = []
        for a in (0, 1):
            _, first, extent = self.reach(a, out[a])
            begin = -(first * self.stride[a] - self.pad[a])
            have = (extent - 1) * self.stride[a] + (self.kernel[a] - 1) * self.dilation[a] + 1
            cut.append((begin, max(0, begin + out[a] - have)))
        (top, more_h), (left, more_w) = cut
        y = F.pad(y, (max(0, -left), more_w, max(0, -top), more_h))
        y = _trim(y, max(0, top), max(0, left), out)
        return y + weights["bias"][:, None, None] if "bias" in weights else y

    def macs(self, weights: Weights, out_size: Size) -> int:
        """Count the mean over output pixels: every input pixel meets every weight once."""
        return prod(weights["weight"].shape) * prod(out_size) // prod(self.stride)

    def describe(self) -> str:
        """Say kernel, stride and groups."""
        return f"{self.kernel[0]}x{self.kernel[1]} s{self.stride[0]}" + (
            f" g{self.groups}" if self.groups > 1 else ""
        )
