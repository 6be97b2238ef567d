"""From a picture's own channels and depth to those that a network wants, and to the screen."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from torchdelta.errors import SourceError
from torchdelta.video.records import Decoded

Range = tuple[float, float]
# [H, W, C]: uint8, or float32 in a range of values
Frame = NDArray[Any]

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


def with_channels(decoded: Decoded, wanted: int) -> NDArray[Any]:
    """The pixels with 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA) channels.

    Grey is 0.299 R + 0.587 G + 0.114 B; alpha that nobody wants is left out. Raises SourceError
    where alpha is wanted and the picture has none.
    """
    pixels = decoded.pixels
    has = pixels.shape[2]
    if has == wanted:
        return np.ascontiguousarray(pixels)
    if wanted in (2, 4) and has in (1, 3):
        raise SourceError(
            f"{decoded.origin}: has {has} channel{'s' if has > 1 else ''} ({CHANNELS[has]}), the "
            f"model takes {wanted} ({CHANNELS[wanted]}); give pictures with an alpha channel"
        )
    colours = pixels[..., :3] if has >= 3 else pixels[..., :1]
    colours = np.ascontiguousarray(colours)
    if wanted in (1, 2) and has >= 3:
        colours = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[..., None]
    elif wanted in (3, 4) and has < 3:
        colours = np.repeat(colours, 3, axis=2)
    if wanted in (2, 4):
        return np.concatenate([colours, pixels[..., -1:]], axis=2)
    return colours


def has_alpha(pixels: NDArray[Any]) -> bool:
    """Whether the last channel of [H, W, C] is alpha."""
    return pixels.shape[2] in (2, 4)


def least_and_largest(decoded: Decoded) -> Range:
    """The range of a picture's finite values, alpha left out.

    Of a picture that is even all over: what its file can hold, for floats one more.
    """
    pixels = decoded.pixels[..., :-1] if has_alpha(decoded.pixels) else decoded.pixels
    finite = pixels[np.isfinite(pixels)] if pixels.dtype == np.float32 else pixels
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low < high:
        return low, high
    return (0.0, decoded.full) if pixels.dtype != np.float32 else (low, low + 1)


def in_range(pixels: NDArray[Any], limits: Range, full: float) -> NDArray[np.float32]:
    """Bring values to float32 and clip them to the range; alpha 0..full is stretched over it.

    pixels: [H, W, C] uint8, uint16 or float32;  NaN stays, for the session to refuse
    """
    low, high = limits
    values = pixels.astype(np.float32)
    if has_alpha(pixels):
        values[..., -1] *= (high - low) / full
        values[..., -1] += low
    return np.clip(values, np.float32(low), np.float32(high), out=values)


def stretched(frame: Frame, limits: Range) -> NDArray[np.float32]:
    """An 8-bit frame among frames of a range: 0..255 is stretched over it; others stay."""
    if frame.dtype != np.uint8:
        return np.asarray(frame, np.float32)
    low, high = limits
    return frame.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)


def to_8_bits(pixels: NDArray[Any], full: float) -> NDArray[np.uint8]:
    """Bring values 0..full to 0..255: of whole numbers the upper 8 bits."""
    if pixels.dtype != np.float32:
        return (pixels.astype(np.uint32) * 256 // (int(full) + 1)).astype(np.uint8)
    return np.clip(np.nan_to_num(pixels) * (255 / full), 0, 255).astype(np.uint8)


def as_rgb(frame: Frame, limits: Range | None = None) -> NDArray[np.uint8]:
    """A frame as it is shown: uint8 [H, W, 3], alpha left out.

    frame:  [H, W, 1..4], uint8, or float32 with values in limits (default: 0..1)
    """
    if frame.dtype != np.uint8:
        low, high = limits or (0.0, 1.0)
        values = np.nan_to_num((frame - low) * (255 / (high - low)))
        frame = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    if frame.shape[2] < 3:
        return np.repeat(frame[..., :1], 3, axis=2)
    return np.ascontiguousarray(frame[..., :3])
