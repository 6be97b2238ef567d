"""Bilinear resize.

out[y, x] = sum over two rows and two columns of weight * in, where the source place is
  align_corners: o * (n - 1) / (m - 1)      else: max(0, (o + 0.5) * scale - 0.5)
with scale = n / m, or 1 / factor where the model gives the factor. A place of weight 0 is not read:
what is infinite or NaN there does not reach the output, as the footprint says. Nearest resize is a
`Remap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchdelta.ops.base import Axis, Footprint, Op, Pixels, Size, Weights, take_rows, wide


@lru_cache(maxsize=1024)
def source_places(
    n: int, m: int, align_corners: bool, factor: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the inputs that m outputs blend, of n along an axis.

    Returns the lower and the upper index [m] int64, and the upper one's weight [m] float32; where
    that is 0 the two are the same.
    """
    if align_corners:
        at = np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0)
    else:
        at = np.maximum(0.0, (np.arange(m) + 0.5) * (1 / factor if factor else n / m) - 0.5)
    lo = np.minimum(np.floor(at), n - 1)
    part = np.where(lo + 1 < n, at - lo, 0.0).astype(np.float32)
    hi = np.where(part > 0, lo + 1, lo)
    return (
        torch.from_numpy(lo.astype(np.int64)),
        torch.from_numpy(hi.astype(np.int64)),
        torch.from_numpy(part),
    )


def _blend(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """Blend (1 - part) * a + part * b; where part is 0 it is a, whatever b is."""
    return torch.where(part > 0, (1 - part) * a + part * b, a)


@dataclass(frozen=True)
class Bilinear(Op):
    """Bilinear resize to `size`; `factors` (h, w) as the model gives them, else None."""

    name: ClassVar[str] = "bilinear"
    size: Size
    align_corners: bool = False
    factors: tuple[float, float] | None = None

    def fixed(self, in_sizes: Sequence[Size]) -> str | None:
        """Only enlargements and reductions by whole numbers, without align_corners, follow."""
        if self.align_corners:
            return "align_corners"
        factors = self.factors or [m / n for n, m in zip(in_sizes[0], self.size, strict=True)]
        whole = all(f.is_integer() or (1 / f).is_integer() for f in factors)
        return None if whole else "a resize by another than a whole number"

    def source(self, axis: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Find what the outputs along an axis of n inputs blend (see `source_places`)."""
        factor = self.factors[axis] if self.factors else None
        return source_places(n, self.size[axis], self.align_corners, factor)

    def footprints(self, in_sizes: Sequence[Size], out_size: Size) -> tuple[Footprint, ...]:
        """Mark the outputs that blend a changed pixel."""
        axes = []
        for a in (0, 1):
            lo, hi, _ = self.source(a, in_sizes[0][a])
            axes.append(Axis.from_ranges(in_sizes[0][a], lo.tolist(), hi.tolist()))
        return (Footprint.separable(axes),)

    def full(self, inputs: Sequence[Tensor], weights: Weights) -> Tensor:
        """Blend columns, then rows, of the whole map, in float32."""
        x = wide(inputs[0])
        y0, y1, wy = (v.to(x.device) for v in self.source(0, x.shape[0]))
        x0, x1, wx = (v.to(x.device) for v in self.source(1, x.shape[1]))
        across = _blend(x[:, x0], x[:, x1], wx[None, :, None])
        return _blend(across[y0], across[y1], wy[:, None, None]).to(inputs[0].dtype)

    def rows(
        self, inputs: Sequence[Pixels], weights: Weights, active: Tensor, out_size: Size
    ) -> Tensor:
        """Blend four gathered rows per active pixel, in float32."""
        x = inputs[0]
        h, w = x.shape[:2]
        at = (active // out_size[1], active % out_size[1])
        y0, y1, wy = (v.to(x.device)[at[0]] for v in self.source(0, h))
        x0, x1, wx = (v.to(x.device)[at[1]] for v in self.source(1, w))
        wx, wy = wx.unsqueeze(1), wy.unsqueeze(1)
        top = _blend(wide(take_rows(x, y0 * w + x0)), wide(take_rows(x, y0 * w + x1)), wx)
        low = _blend(wide(take_rows(x, y1 * w + x0)), wide(take_rows(x, y1 * w + x1)), wx)
        return _blend(top, low, wy).to(x.dtype)

    def describe(self) -> str:
        """Say the size."""
        corners = " align_corners" if self.align_corners else ""
        return f"to {self.size[0]}x{self.size[1]}{corners}"
