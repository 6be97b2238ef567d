"""Results drawn on a picture: masks, heat maps, captions, class names, and pictures side by side.

Every function takes uint8 [H, W, 3] RGB of any size and returns a new array of that kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from torchdelta.video import text

Picture = NDArray[np.uint8]

LEAST_LETTER_PX = 9.0
DIMMED = 0.35
# The lower fifth of the colour map is nearly black and would not stand out from the dimmed picture.
LOWEST_COLOUR = 0.2


def segmentation(
    rgb: Picture, labels: Any, palette: NDArray[np.uint8] | None = None, alpha: float = 0.5
) -> Picture:
    """Colour the pixels by their class; class 0 and the labels 255 and below 0 stay as they are.

    labels:  integer or bool [h, w] or [1, h, w], array or tensor; brought to the picture's size
    palette: uint8 [K, 3] RGB colours of the classes, repeated beyond K; default: own colours
    alpha:   share of the colour, 0..1
    """
    classes = _array(labels)
    classes = classes.reshape(classes.shape[-2:]).astype(np.int32)
    h, w = rgb.shape[:2]
    if classes.shape != (h, w):
        classes = cv2.resize(classes, (w, h), interpolation=cv2.INTER_NEAREST)
    colours = default_palette() if palette is None else np.asarray(palette, np.uint8)
    marked = (classes > 0) & (classes != 255)
    picture = rgb.copy()
    mixed = (1 - alpha) * rgb[marked] + alpha * colours[classes[marked] % len(colours)]
    picture[marked] = np.rint(mixed).astype(np.uint8)
    return picture


def default_palette() -> Picture:
    """256 class colours [256, 3] whose neighbours differ much; colour 0 is black."""
    index = np.arange(256)
    hsv = np.empty((1, 256, 3), np.uint8)
    # steps of the golden ratio never come near a hue that was just used; OpenCV counts hue to 180
    hsv[0, :, 0] = np.floor(index * 0.618034 % 1 * 180)
    hsv[0, :, 1] = np.where(index % 2, 230, 150)
    hsv[0, :, 2] = np.where(index % 3, 255, 190)
    hsv[0, 0] = 0
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0], np.uint8)


def colour_of(label: int) -> tuple[int, int, int]:
    """Give the colour (RGB) that `segmentation` gives a class."""
    palette = default_palette()
    red, green, blue = (int(c) for c in palette[label % len(palette)])
    return red, green, blue


def heat(rgb: Picture, heat01: NDArray[np.floating[Any]]) -> Picture:
    """Show where work was done: the picture dimmed and grey, in colour where heat01 is above 0.

    heat01: float [h, w] in 0..1, brought to the picture's size
    """
    h, w = rgb.shape[:2]
    values: NDArray[Any] = np.clip(np.nan_to_num(_array(heat01).astype(np.float32)), 0, 1)
    if values.shape != (h, w):
        values = cv2.resize(values, (w, h), interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) * DIMMED
    place = (LOWEST_COLOUR + (1 - LOWEST_COLOUR) * values) * 255
    colours = cv2.applyColorMap(np.rint(place).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = np.where(values > 0, 0.4 + 0.5 * values, 0)[..., None]
    return np.rint((1 - share) * grey + share * colours).astype(np.uint8)


def caption(rgb: Picture, line: str) -> Picture:
    """Write one line of text on a dark strip along the lower edge."""
    picture = rgb.copy()
    if line:
        h, w = picture.shape[:2]
        strip = text.strip([line], w, max(LEAST_LETTER_PX, min(h, w) / 32))[-h:]
        picture[h - len(strip) :] = strip
    return picture


def labels(rgb: Picture, classes: Sequence[tuple[str, float]]) -> Picture:
    """Write class names and scores (0..1) into a corner; less than a tenth is covered."""
    return text.box(rgb, [f"{score:.2f} {name}" for name, score in classes])


def image(rgb: Picture, out: Any) -> Picture:
    """Turn an image that a network made into a picture of the size of its input picture.

    out: [1, C, H, W], [C, H, W], [H, W, C] or [H, W], array or tensor, with C 1 or 3: float in
         0..1 (clipped), or uint8 as it is

    Raises ValueError where it is no image.
    """
    values = _array(out)
    shape = values.shape
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[-1] not in (1, 3):
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[-1] not in (1, 3):
        raise ValueError(
            f"output of shape {list(shape)} is no image; expected [1, C, H, W] with 1 or 3 channels"
        )
    if values.dtype != np.uint8:
        values = np.rint(np.clip(np.nan_to_num(values.astype(np.float32)), 0, 1) * 255)
    h, w = rgb.shape[:2]
    picture = np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8))
    if picture.shape[:2] != (h, w):
        smaller = picture.shape[0] > h or picture.shape[1] > w
        picture = np.asarray(
            cv2.resize(
                picture, (w, h), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            ),
            np.uint8,
        )
    return picture


def fitted(rgb: Picture, size: tuple[int, int]) -> Picture:
    """Bring a picture to a size (h, w), its proportions kept, on black."""
    h, w = size
    factor = min(h / rgb.shape[0], w / rgb.shape[1])
    to = (max(1, round(rgb.shape[0] * factor)), max(1, round(rgb.shape[1] * factor)))
    if rgb.shape[:2] == to == size:
        return rgb
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(rgb, to[::-1], interpolation=how), np.uint8)
    picture = np.zeros((h, w, 3), np.uint8)
    top, left = (h - to[0]) // 2, (w - to[1]) // 2
    picture[top : top + to[0], left : left + to[1]] = small
    return picture


def side_by_side(left: Picture, right: Picture) -> Picture:
    """Put two pictures next to each other; the lower one is padded with black below."""
    h = max(left.shape[0], right.shape[0])
    picture = np.zeros((h, left.shape[1] + right.shape[1], 3), np.uint8)
    picture[: left.shape[0], : left.shape[1]] = left
    picture[: right.shape[0], left.shape[1] :] = right
    return picture


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach()
        # NumPy has no bfloat16
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)
