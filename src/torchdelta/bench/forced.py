"""Forced activity: a share of every map active, wherever the frames really changed.

Times kernels apart from content. The frame runs as always (gates, masks, footprints); then discs of
radius W/24, drawn with seed 0, replace each step's active set (design, section 10).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchdelta.plan import Plan

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SEED = 0
DISCS_ACROSS = 24
# 8-bit steps between the two frames inside the discs: passes the input gate at tolerances to 0.48
CONTRAST = 96
TEXTURE_PX = 16
NOISE_STD = 3.0


def disc_mask(size: tuple[int, int], share: float) -> Mask:
    """Draw discs until at least `share` of the map is marked: bool [h, w].

    Their centres are drawn as shares of height and width, so that they lie at the same places in
    maps of every size. A map of one pixel is marked whole, unless the share is 0.
    """
    h, w = size
    if share > 0 and (h * w == 1 or share >= 1):
        return np.ones(size, dtype=np.bool_)
    mask = np.zeros(size, dtype=np.bool_)
    rng = np.random.default_rng(SEED)
    # half a pixel: the smallest disc is one pixel
    radius_px = max(w / DISCS_ACROSS, 0.5)
    reach = math.floor(radius_px)
    wanted_px = math.ceil(share * h * w)
    marked_px = 0
    while marked_px < wanted_px:
        u, v = rng.random(2)
        y, x = int(u * h), int(v * w)
        top, left = max(0, y - reach), max(0, x - reach)
        part = mask[top : y + reach + 1, left : x + reach + 1]
        rows = np.arange(top, top + part.shape[0])[:, None] - y
        cols = np.arange(left, left + part.shape[1])[None, :] - x
        disc = rows * rows + cols * cols <= radius_px * radius_px
        marked_px += int((disc & ~part).sum())
        part |= disc
    return mask


def forced_masks(plan: Plan, share: float, device: torch.device) -> dict[int, Tensor]:
    """Give every step of a plan its active set, bool [Ho, Wo]; steps of one size share one."""
    by_size: dict[tuple[int, int], Tensor] = {}
    masks = {}
    for index, step in enumerate(plan.steps):
        size = plan.values[step.output].size
        if size not in by_size:
            by_size[size] = torch.from_numpy(disc_mask(size, share)).to(device)
        masks[index] = by_size[size]
    return masks


def made_frame(size: tuple[int, int], channels: int, seed: int) -> Picture:
    """Make a picture with soft texture and a camera's noise: uint8 [h, w, channels]."""
    rng = np.random.default_rng(seed)
    h, w = size
    coarse = rng.uniform(20, 235, (h // TEXTURE_PX + 2, w // TEXTURE_PX + 2, channels))
    soft = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC).reshape(h, w, channels)
    noisy = soft + rng.normal(0, NOISE_STD, soft.shape)
    return np.asarray(noisy.round().clip(0, 255), dtype=np.uint8)


def changed_inside(frame: Picture, mask: Mask) -> Picture:
    """Change a picture inside the discs of the input map, and only there."""
    darker = np.where(frame >= 128, frame - CONTRAST, frame + CONTRAST).astype(np.uint8)
    return np.where(mask[:, :, None], darker, frame)
