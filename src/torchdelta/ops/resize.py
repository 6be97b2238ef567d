"""Bilinear resize.

out[y, x] = sum over two rows and two columns of weight * in, where the source place is
  align_corners: o * (n - 1) / (m - 1)      else: max(0, (o + 0.5) * scale - 0.5)
with scale = n / m, or 1 / factor where the model gives the factor. Nearest resize is a `Remap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import ClassVar

import torch
from torch import Tensor

from torchdelta.ops.base import Axis, Footprint, Op, Size, Weights, hwc, nchw, take_rows


@dataclass(frozen=True)
class Bilinear(Op):
    """Bilinear resize to `size`; `factors` (h, w) as the model gives them, else None."""

    name: ClassVar[str] = "bilinear"
    size: Size
    align_corners: bool = False
    factors: tuple[float, float] | None = None

    @property
    def shift_equivariant(self) -> bool:
        """Only whole-number enlargements without align_corners follow a shift."""
        whole = self.factors is not None and all(f == int(f) for f in self.factors)
        return whole and not self.align_corners

    def _source(self, axis: int, n: int) -> tuple[list[int], list[int], list[float]]:
        """Give the lower and upper input index and the upper one's weight, per output."""
        m = self.size[axis]
        lo, hi, part = [], [], []
        for o in range(m):
            if self.align_corners:
                at = o * (n - 1) / (m - 1) if m > 1 else 0.0
            else:
                scale = 1 / self.factors[axis] if self.factors else n / m
                at = max(0.0, (o + 0.5) * scale - 0.5)
            first = min(floor(at), n - 1)
            lo.append(first)
            hi.append(min(first + 1, n - 1))
            part.append(at - first if first + 1 < n else 0.0)
        return lo, hi, part

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Mark the outputs that blend a changed pixel."""
        axes = []
        for a in (0, 1):
            lo, hi, part = self._source(a, in_sizes[0][a])
            upper = [h if p > 0 else low for low, h, p in zip(lo, hi, part, strict=True)]
            axes.append(Axis.from_ranges(in_sizes[0][a], lo, upper))
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Run the stock resize on the whole map."""
        h, w = self.factors or (None, None)
        y = torch.ops.aten.upsample_bilinear2d(
            nchw(inputs[0]), list(self.size), self.align_corners, h, w
        )
        return hwc(y)

    def rows(
        self, inputs: Sequence[Tensor], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Blend four gathered rows per active pixel, in float32."""
        x = inputs[0]
        h, w = x.shape[:2]
        at = (active // out_size[1], active % out_size[1])
        y0, y1, wy = (torch.tensor(v, device=x.device)[at[0]] for v in self._source(0, h))
        x0, x1, wx = (torch.tensor(v, device=x.device)[at[1]] for v in self._source(1, w))
        wx, wy = wx.float().unsqueeze(1), wy.float().unsqueeze(1)
        top = torch.lerp(take_rows(x, y0 * w + x0).float(), take_rows(x, y0 * w + x1).float(), wx)
        low = torch.lerp(take_rows(x, y1 * w + x0).float(), take_rows(x, y1 * w + x1).float(), wx)
        return torch.lerp(top, low, wy).to(x.dtype)

    def describe(self) -> str:
        """Say the size."""
        corners = " align_corners" if self.align_corners else ""
        return f"to {self.size[0]}x{self.size[1]}{corners}"
