"""How far apart two tensors' numbers are."""

from __future__ import annotations

import torch
from torch import Tensor


def in_float64(x: Tensor) -> Tensor:
    """Give a tensor's numbers in float64, a complex one's two parts along a last axis."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()


def squares(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Give the sums of the squares of x - y, and of y; both in float64, of one shape.

    What is equal differs by nothing, infinities and NaN too; of y those are left out.
    """
    equal = (x == y) | (x.isnan() & y.isnan())
    difference = torch.where(equal, 0.0, x - y).square().sum()
    return float(difference), float(torch.where(y.isfinite(), y, 0.0).square().sum())
