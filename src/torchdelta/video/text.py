"""Text on pictures: lines and boxes as large as their place allows, never too small to read."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE: Colour = (255, 255, 255)
# height of an upper-case letter at font scale 1, in pixels
CAPITAL_PX = 22
# smaller letters cannot be told apart
LEAST_PX = 6
# of a line, over the height of its letters
LINE = 1.8
# a box covers less of its picture, whatever is written in it
LARGEST_BOX = 0.1
LONGEST_IN_BOX = 32


def plain(text: str) -> str:
    """Write text with the letters that the font has: accents are dropped, others become "?"."""
    folded = unicodedata.normalize("NFKD", text.replace("…", ".."))
    letters = (c for c in folded if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in letters)


def width_px(text: str, letter_px: float) -> int:
    """Give the width of a line of text."""
    (width, _), _ = cv2.getTextSize(text, FONT, letter_px / CAPITAL_PX, _thickness(letter_px))
    return int(width)


def fitting(text: str, letter_px: float, most_px: int) -> tuple[str, float]:
    """Make a line fit into a width: smaller letters first, then its end is cut off.

    returns: the line, "" where nothing fits, and the height of its letters
    """
    text = plain(text)
    while letter_px > LEAST_PX and width_px(text, letter_px) > most_px:
        letter_px = max(LEAST_PX, letter_px - 0.5)
    return cut(text, letter_px, most_px), letter_px


def cut(text: str, letter_px: float, most_px: int) -> str:
    """Cut a line's end off until it fits, and mark it with two points."""
    kept = text
    while kept and width_px(text, letter_px) > most_px:
        kept = kept[:-1].rstrip()
        text = f"{kept}.." if len(kept) > 2 else ""
    return text if kept else ""


def write(picture: Picture, text: str, at: tuple[int, int], letter_px: float,
          colour: Colour = WHITE) -> None:  # fmt: skip
    """Write a line into a picture; at: (x, y) of its left end on the base line."""
    scale, thickness = letter_px / CAPITAL_PX, _thickness(letter_px)
    cv2.putText(picture, text, at, FONT, scale, colour, thickness, cv2.LINE_AA)


def strip(lines: Sequence[str], width: int, letter_px: float) -> Picture:
    """Make a dark strip with lines of text, one below the other: uint8 [h, width, 3]."""
    line_px = round(letter_px * LINE)
    picture = np.full((line_px * len(lines) + line_px // 3, width, 3), 24, np.uint8)
    for n, line in enumerate(lines):
        text, size_px = fitting(line, letter_px, width - 2 * round(letter_px))
        write(picture, text, (round(letter_px), round(line_px * (n + 0.85))), size_px)
    return picture


def box(rgb: Picture, lines: Sequence[str], *, middle: bool = False) -> Picture:
    """Write lines in a dark box that covers less than a tenth of the picture.

    middle: in the middle of the picture instead of its upper left corner

    Letters become smaller where they must, then the last lines are left out, then the line is cut;
    a picture with no room for a word stays as it is.
    """
    picture = rgb.copy()
    h, w = picture.shape[:2]
    lines = [cut(plain(line), LEAST_PX, LONGEST_IN_BOX * LEAST_PX) for line in lines if line]
    largest_px = max(float(LEAST_PX), min(h, w) / 24)
    for count in range(len(lines), 0, -1):
        for letter_px in np.arange(largest_px, LEAST_PX - 0.01, -0.5):
            if _fits(lines[:count], float(letter_px), h, w):
                return _boxed(picture, lines[:count], float(letter_px), middle)
    if lines:
        box_h = _box_size([""], LEAST_PX)[0]
        most_px = int(min(w, LARGEST_BOX * h * w / box_h)) - 3 * LEAST_PX
        short = cut(lines[0], LEAST_PX, most_px)
        if short and _fits([short], LEAST_PX, h, w):
            return _boxed(picture, [short], LEAST_PX, middle)
    return picture


def _thickness(letter_px: float) -> int:
    return max(1, round(letter_px / 12))


def _box_size(lines: Sequence[str], letter_px: float) -> tuple[int, int]:
    widest = max(width_px(line, letter_px) for line in lines)
    return round(letter_px * (LINE * len(lines) + 0.6)), round(widest + 1.4 * letter_px)


def _fits(lines: Sequence[str], letter_px: float, h: int, w: int) -> bool:
    box_h, box_w = _box_size(lines, letter_px)
    # a margin around it
    inside = box_h + letter_px <= h and box_w + letter_px <= w
    return inside and box_h * box_w < LARGEST_BOX * h * w


def _boxed(picture: Picture, lines: Sequence[str], letter_px: float, middle: bool) -> Picture:
    box_h, box_w = _box_size(lines, letter_px)
    top = left = round(letter_px / 2)
    if middle:
        top, left = (picture.shape[0] - box_h) // 2, (picture.shape[1] - box_w) // 2
    inside = picture[top : top + box_h, left : left + box_w]
    inside[:] = inside // 5
    for n, line in enumerate(lines):
        baseline = top + round(letter_px * (LINE * (n + 1) - 0.3))
        write(picture, line, (left + round(0.7 * letter_px), baseline), letter_px)
    return picture
