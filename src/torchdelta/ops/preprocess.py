"""Preprocess: from a frame to the network's input.

v = lo + (hi - lo) * u / 255 for uint8 frames, v = frame for float frames;
input = (v - mean[c]) / std[c], red and blue swapped first where the model wants BGR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLORS = ("rgb", "bgr")


def channel_order(color: str, channels: int) -> list[int]:
    """Say which channel of a frame each of the network's is.

    BGR swaps the first and the third of 3 or 4 channels; a fourth, alpha, stays where it is.
    Raises: ValueError for an unknown order, or where there is no red and blue to swap.
    """
    if color not in COLORS:
        raise ValueError(f"color is {color!r}, expected 'rgb' or 'bgr'")
    if color == "rgb":
        return list(range(channels))
    if channels not in (3, 4):
        raise ValueError(
            f"color is 'bgr' and frames have {channels} channels; red and blue are swapped in "
            "frames of 3 channels, or of 4 whose last is alpha: leave color out"
        )
    return [2, 1, 0, *range(3, channels)]


@dataclass(frozen=True)
class Preprocess:
    """How frames become the network's input; range lo..hi of a frame's values is full scale."""

    lo: float = 0.0
    hi: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color: str = "rgb"

    def apply(self, frame: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise frame [H, W, C] uint8 or float (of any float dtype); returns it in dtype."""
        if self.color == "bgr":
            frame = frame[..., channel_order(self.color, frame.shape[-1])]
        if frame.dtype == torch.uint8:
            scale, shift = (self.hi - self.lo) / 255, self.lo
            if self.mean is None:
                return (frame.float() * scale + shift).to(dtype)
            mean, std = self._stats(frame)
            return torch.addcmul((shift - mean) / std, frame.float(), scale / std).to(dtype)
        if self.mean is None:
            return frame.to(dtype)
        mean, std = self._stats(frame)
        return ((frame.float() - mean) / std).to(dtype)

    def _stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, device=like.device, dtype=torch.float32)
        std = torch.ones_like(mean)
        if self.std is not None:
            std = torch.tensor(self.std, device=like.device, dtype=torch.float32)
        return mean, std

    def per_full_scale(self, channels: int) -> tuple[float, ...]:
        """Give the factor per channel from input units to shares of full scale."""
        full = self.hi - self.lo
        return tuple(s / full for s in self.std) if self.std else (1.0 / full,) * channels
