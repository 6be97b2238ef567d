"""Frames brought into a window of the world, and maps brought back.

Window pixel (y, x) shows the world at (x + origin x, y + origin y); the frame's pose maps the
frame's pixel centres to the world's. Bilinear: on four moving clips bicubic changes as many pixels
or more (docs/performance.md), and takes four times as long.
"""

from __future__ import annotations

from typing import Any, overload

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from torchdelta.motion.homography import Homography, Size, inverse, scaled, shift, whole_shift

# a pixel centre may lie that far outside the frame by rounding, pixels
ROUNDING_PX = 1e-6

Mask = NDArray[np.bool_]


def to_window(pose: Homography, origin: tuple[int, int]) -> Homography:
    """Map the frame's pixel centres to those of the window at origin (y, x)."""
    return scaled(shift(-origin[1], -origin[0]) @ pose)


def valid_mask(to_window: Homography, frame: Size, window: Size) -> Mask:
    """Mark the window pixels whose centre lies among the frame's pixel centres: bool [H, W]."""
    h, w = frame
    # to the frame, as (x', y', depth): inside where 0 <= x' <= (w - 1) depth, and so on
    x, y, depth = inverse(to_window)
    edges = [
        x + ROUNDING_PX * depth,
        (w - 1 + ROUNDING_PX) * depth - x,
        y + ROUNDING_PX * depth,
        (h - 1 + ROUNDING_PX) * depth - y,
    ]
    rows = np.arange(window[0], dtype=np.float64)
    first, last = np.zeros(window[0]), np.full(window[0], window[1] - 1.0)
    # each edge cuts a row at one place, perhaps at infinity
    with np.errstate(over="ignore"):
        for slope, per_row, rest in edges:
            value = per_row * rows + rest
            if slope > 0:
                first = np.maximum(first, np.ceil(-value / slope))
            elif slope < 0:
                last = np.minimum(last, np.floor(value / -slope))
            else:
                last = np.where(value >= 0, last, -1)
    first = np.minimum(first, window[1]).astype(np.int32)
    last = np.maximum(last, -1).astype(np.int32)
    columns = np.arange(window[1], dtype=np.int32)
    return (columns >= first[:, None]) & (columns <= last[:, None])


@overload
def warp(frame: NDArray[Any], to_window: Homography, window: Size) -> NDArray[Any]: ...
@overload
def warp(frame: Tensor, to_window: Homography, window: Size) -> Tensor: ...
def warp(frame: Any, to_window: Homography, window: Size) -> Any:
    """Sample a frame at the window's pixels, bilinear; beyond the frame its edge is repeated.

    frame:   [h, w, C] uint8 or float; an array or tensor on the CPU by OpenCV, others by PyTorch
    returns: [H, W, C], same kind, dtype and device; copied where the map is a whole shift
    """
    whole = whole_shift(to_window)
    if isinstance(frame, Tensor):
        if whole is not None:
            return _shifted_tensor(frame, whole, window)
        if frame.device.type == "cpu" and frame.dtype in (torch.uint8, torch.float32):
            return torch.from_numpy(_warp_opencv(frame.numpy(), to_window, window))
        return _warp_torch(frame, to_window, window)
    if whole is not None:
        return _shifted_tensor(torch.from_numpy(frame), whole, window).numpy()
    return _warp_opencv(frame, to_window, window)


def _shifted_tensor(frame: Tensor, whole: tuple[int, int], window: Size) -> Tensor:
    y = (torch.arange(window[0], device=frame.device) - whole[1]).clamp_(0, frame.shape[0] - 1)
    x = (torch.arange(window[1], device=frame.device) - whole[0]).clamp_(0, frame.shape[1] - 1)
    return frame[y][:, x]


def _warp_opencv(frame: NDArray[Any], to_window: Homography, window: Size) -> NDArray[Any]:
    channels = frame.shape[2]
    if channels > 4:
        parts = [frame[:, :, c : c + 4] for c in range(0, channels, 4)]
        return np.concatenate([_warp_opencv(p, to_window, window) for p in parts], axis=2)
    # OpenCV samples four channels more than twice as fast as three
    padded = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA) if channels == 3 else frame
    out = cv2.warpPerspective(
        padded, to_window, window[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    out = cv2.cvtColor(out, cv2.COLOR_RGBA2RGB) if channels == 3 else out
    return np.asarray(out).reshape(*window, channels)


def _warp_torch(frame: Tensor, to_window: Homography, window: Size) -> Tensor:
    planes = frame.permute(2, 0, 1)[None].float()
    size = (int(frame.shape[0]), int(frame.shape[1]))
    grid = sampling_grid(inverse(to_window), size, window, frame.device)
    out = F.grid_sample(planes, grid, "bilinear", "border", align_corners=True)[0].permute(1, 2, 0)
    if frame.dtype == torch.uint8:
        return out.round_().to(torch.uint8)
    return out.to(frame.dtype)


def sampling_grid(
    homography: Homography, source: Size, target: Size, device: torch.device
) -> Tensor:
    """Make grid_sample's grid (align_corners=True) that samples the source at a map of the target.

    homography: the target's pixel centres to the source's;  returns: [1, H, W, 2] float32
    """
    kwargs: dict[str, Any] = {"device": device, "dtype": torch.float32}
    y = torch.arange(target[0], **kwargs)[:, None]
    x = torch.arange(target[1], **kwargs)[None]
    # to -1..1 from centre to centre; a source of one row has its centre at 0
    h, w = (max(1, n - 1) for n in source)
    unit = np.array([[2 / w, 0, -1], [0, 2 / h, -1], [0, 0, 1]]) @ homography
    along_x, along_y, depth = (a * x + b * y + c for a, b, c in unit.tolist())
    return torch.stack([along_x / depth, along_y / depth], -1)[None]
