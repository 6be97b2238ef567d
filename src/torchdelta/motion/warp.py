"""Frames brought into a window of the world, and maps brought back.

Window pixel (y, x) shows the world at (x + origin x, y + origin y); the frame's pose maps the
frame's pixel centres to the world's. Why bilinear: docs/log/alignment.md.

Where the valid mask says so, a window shows what OpenCV samples; beyond it, 0 or a blend with 0.
Where the native library is there, it samples frames of uint8 and three channels, within one grey
level of OpenCV (`native/src/isa/warp.h`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, TypeVar, overload

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from torchdelta.errors import EngineError
from torchdelta.motion.homography import Homography, Size, inverse, scaled, shift, whole_shift
from torchdelta.native_lib import agree, choose_isa, function, isas

# a pixel centre may lie that far outside the frame by rounding, pixels
ROUNDING_PX = 1e-6

Mask = NDArray[np.bool_]
Array = TypeVar("Array", np.ndarray, Tensor)


class _Call(ctypes.Structure):
    """One frame brought into a window (td_warp_call in `native/src/torchdelta_native.h`)."""

    _fields_ = (
        ("frame", ctypes.c_void_p),
        ("stride_y", ctypes.c_int64),
        ("h", ctypes.c_int32),
        ("w", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("out_h", ctypes.c_int32),
        ("out_w", ctypes.c_int32),
        ("to_frame", ctypes.c_void_p),
        ("rounding_px", ctypes.c_double),
        ("threads", ctypes.c_int32),
    )


class Scratch:
    """Memory used again for each frame of a stream: new pages cost more than the warp itself."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def of(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give an array with any content, valid until the same is asked for again."""
        found = self._arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self._arrays[name] = np.empty(shape, dtype)
        return found


def to_window(pose: Homography, origin: tuple[int, int]) -> Homography:
    """Map the frame's pixel centres to those of the window at origin (y, x)."""
    return scaled(shift(-origin[1], -origin[0]) @ pose)


def valid_mask(to_window: Homography, frame: Size, window: Size) -> Mask:
    """Mark the window pixels whose centre lies among the frame's pixel centres: bool [H, W]."""
    isa = _native()
    if not isa:
        return mask_by_rows(to_window, frame, window)
    mask = np.empty(window, np.bool_)
    _run_native(isa, to_window, window, h=frame[0], w=frame[1], mask=mask.ctypes.data)
    return mask


def mask_by_rows(to_window: Homography, frame: Size, window: Size) -> Mask:
    """Do what `valid_mask` does, without the native library: the definition."""
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
    kind = np.int16 if window[1] < 2**15 else np.int32
    columns: NDArray[Any] = np.arange(window[1]).astype(kind)
    begins: NDArray[Any] = np.minimum(first, window[1]).astype(kind)[:, None]
    ends: NDArray[Any] = np.maximum(last, -1).astype(kind)[:, None]
    return np.asarray((columns >= begins) & (columns <= ends))


@overload
def warp(
    frame: NDArray[Any], to_window: Homography, window: Size, scratch: Scratch | None = None
) -> NDArray[Any]: ...
@overload
def warp(
    frame: Tensor, to_window: Homography, window: Size, scratch: Scratch | None = None
) -> Tensor: ...
def warp(frame: Any, to_window: Homography, window: Size, scratch: Scratch | None = None) -> Any:
    """Sample a frame at the window's pixels, bilinear; 0 beyond the frame.

    frame:   [h, w, C] uint8 or float; an array or tensor on the CPU by the native library or
             OpenCV, others by PyTorch
    scratch: the stream's
    returns: [H, W, C], same kind, dtype and device; copied where the map is a whole shift
    """
    scratch = scratch or Scratch()
    whole = whole_shift(to_window)
    if isinstance(frame, Tensor):
        if whole is not None:
            return _copied(frame, whole, frame.new_zeros(*window, frame.shape[2]))
        if frame.device.type == "cpu" and frame.dtype in (torch.uint8, torch.float32):
            return torch.from_numpy(_warp_here(frame.numpy(), to_window, window, scratch))
        return _warp_torch(frame, to_window, window)
    if whole is not None:
        return _copied(frame, whole, np.zeros((*window, frame.shape[2]), frame.dtype))
    return _warp_here(frame, to_window, window, scratch)


def warp_and_mark(
    frame: Array, to_window: Homography, window: Size, scratch: Scratch | None = None
) -> tuple[Array, Mask]:
    """Do what `warp` and `valid_mask` do, at once where the native library does both."""
    size: Size = (int(frame.shape[0]), int(frame.shape[1]))
    given: Any = frame
    if isinstance(frame, Tensor) and frame.device.type == "cpu":
        given = frame.numpy()
    isa = _native_for(given) if isinstance(given, np.ndarray) else None
    if not isa or whole_shift(to_window) is not None:
        return warp(frame, to_window, window, scratch), valid_mask(to_window, size, window)
    mask = np.empty(window, np.bool_)
    warped: Any = warp_native(given, to_window, window, isa, mask)
    return torch.from_numpy(warped) if isinstance(frame, Tensor) else warped, mask


def _copied(frame: Any, by: tuple[int, int], out: Any) -> Any:
    """Copy a frame into a window, shifted by (dx, dy)."""
    (h, w), (dx, dy) = frame.shape[:2], by
    y0, y1 = max(0, dy), min(out.shape[0], h + dy)
    x0, x1 = max(0, dx), min(out.shape[1], w + dx)
    if y0 < y1 and x0 < x1:
        out[y0:y1, x0:x1] = frame[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return out


@cache
def _has_native() -> bool:
    """Say whether the native library can be used; `torchdelta env` says why where it cannot."""
    try:
        agree("td_warp_call", ctypes.sizeof(_Call))
        return bool(isas())
    except EngineError:
        return False


def _native() -> str | None:
    """Name the instruction set of the native library; None where that cannot be used."""
    return choose_isa() if _has_native() else None


def _native_for(frame: NDArray[Any]) -> str | None:
    h, w, channels = frame.shape
    return _native() if frame.dtype == np.uint8 and channels == 3 and min(h, w) > 1 else None


def _warp_here(
    frame: NDArray[Any], to_window: Homography, window: Size, scratch: Scratch
) -> NDArray[Any]:
    isa = _native_for(frame)
    if isa:
        return warp_native(frame, to_window, window, isa)
    return _warp_opencv(frame, to_window, window, scratch)


def warp_native(
    frame: NDArray[np.uint8],
    to_window: Homography,
    window: Size,
    isa: str,
    mask: Mask | None = None,
) -> NDArray[np.uint8]:
    """Sample a frame [h, w, 3] of at least 2x2 by the native library; fills in the valid mask."""
    if frame.strides[1:] != (3, 1) or frame.strides[0] < 0:
        frame = np.ascontiguousarray(frame)
    out = np.empty((*window, 3), np.uint8)
    _run_native(
        isa, to_window, window, h=frame.shape[0], w=frame.shape[1], frame=frame.ctypes.data,
        stride_y=frame.strides[0], out=out.ctypes.data,
        mask=None if mask is None else mask.ctypes.data,
    )  # fmt: skip
    return out


def _run_native(isa: str, to_window: Homography, window: Size, **fields: Any) -> None:
    """Have the native library do it; releases the GIL meanwhile."""
    to_frame = np.ascontiguousarray(inverse(to_window))
    call = _Call(
        out_h=window[0], out_w=window[1], to_frame=to_frame.ctypes.data,
        rounding_px=ROUNDING_PX, threads=torch.get_num_threads(), **fields,
    )  # fmt: skip
    run = function("td_warp", ctypes.c_int32, ctypes.c_char_p, ctypes.POINTER(_Call))
    failed = run(isa.encode(), ctypes.byref(call))
    if failed:
        raise EngineError(f"the native warp failed on {isa}: {'memory' if failed < 0 else 'CPU'}")


def _warp_opencv(
    frame: NDArray[Any], to_window: Homography, window: Size, scratch: Scratch
) -> NDArray[Any]:
    channels = frame.shape[2]
    if channels > 4:
        parts = [frame[:, :, c : c + 4] for c in range(0, channels, 4)]
        return np.concatenate([_warp_opencv(p, to_window, window, scratch) for p in parts], axis=2)
    if channels != 3:
        out = cv2.warpPerspective(frame, to_window, window[::-1], flags=cv2.INTER_LINEAR)
        return np.asarray(out).reshape(*window, channels)
    # OpenCV samples four channels more than twice as fast as three
    padded = scratch.of("padded", (*frame.shape[:2], 4), frame.dtype)
    sampled = scratch.of("sampled", (*window, 4), frame.dtype)
    cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA, dst=padded)
    cv2.warpPerspective(padded, to_window, window[::-1], dst=sampled, flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(sampled, cv2.COLOR_RGBA2RGB))


def _warp_torch(frame: Tensor, to_window: Homography, window: Size) -> Tensor:
    planes = frame.permute(2, 0, 1)[None].float()
    size = (int(frame.shape[0]), int(frame.shape[1]))
    grid = sampling_grid(inverse(to_window), size, window, frame.device)
    out = F.grid_sample(planes, grid, "bilinear", "zeros", align_corners=True)[0].permute(1, 2, 0)
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
