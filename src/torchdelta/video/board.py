"""A picture of pictures: a title line, panels side by side, and below each what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchdelta.video import overlay, text

Picture = NDArray[np.uint8]
Size = tuple[int, int]

# smaller pictures are enlarged by whole factors: text beside them would not be readable
LEAST_SIZE: Size = (240, 400)
# ... but not beyond this, for pictures that are very long
MOST_PX = 1280
# letters over the shorter side of a panel
LETTER = 1 / 36
LEAST_LETTER_PX = 9.0
# the title's letters over the others'
TITLE = 1.3
# so many panels stand in one row; more make two
IN_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """One picture of a board.

    picture: uint8 [H, W, 3] of any size, brought to the board's
    caption: one line below it
    labels:  classes with scores (0..1), in a box in its corner
    note:    a line in a box in its middle
    legend:  colours with names, below the caption
    is_heat: its colours are those of `overlay.heat`, which a bar below the caption explains
    """

    picture: Picture
    caption: str
    labels: Sequence[tuple[str, float]] = ()
    note: str | None = None
    legend: Sequence[tuple[text.Colour, str]] = ()
    is_heat: bool = False


class Board:
    """Draws boards of one size.

    picture: (h, w) of the pictures as they come;  panels: how many there are

    size:   (h, w) of the boards
    factor: by which the pictures are enlarged
    """

    def __init__(self, picture: Size, panels: int) -> None:
        self._picture = picture
        wanted = max(-(-least // side) for least, side in zip(LEAST_SIZE, picture, strict=True))
        self.factor = max(1, min(wanted, MOST_PX // max(picture)))
        self.panel: Size = (picture[0] * self.factor, picture[1] * self.factor)
        rows = 1 if panels <= IN_A_ROW else 2
        self._columns = -(-panels // rows)
        self._letter_px = max(LEAST_LETTER_PX, min(self.panel) * LETTER)
        self._title_letter_px = TITLE * self._letter_px
        self.title_px = len(text.strip([""], 1, self._title_letter_px))
        self._foot_px = len(text.strip(["", ""], 1, self._letter_px))
        self.size: Size = (
            self.title_px + rows * (self.panel[0] + self._foot_px),
            self._columns * self.panel[1],
        )

    def corner(self, index: int) -> tuple[int, int]:
        """Give the (y, x) of the upper left corner of a panel's picture."""
        row, column = divmod(index, self._columns)
        y = self.title_px + row * (self.panel[0] + self._foot_px)
        return y, column * self.panel[1]

    def draw(self, title: str, panels: Sequence[Panel]) -> Picture:
        """Draw a board: uint8 [*size, 3]; panels are at most as many as it was made for."""
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[: self.title_px] = text.strip([title], self.size[1], self._title_letter_px)
        h, w = self.panel
        for index, panel in enumerate(panels):
            y, x = self.corner(index)
            picture[y : y + h, x : x + w] = self._shown(panel)
            picture[y + h : y + h + self._foot_px, x : x + w] = self._foot(panel)
        return picture

    def _shown(self, panel: Panel) -> Picture:
        picture = overlay.fitted(panel.picture, self._picture)
        picture = picture.repeat(self.factor, 0).repeat(self.factor, 1)
        if panel.labels:
            picture = overlay.labels(picture, panel.labels)
        return text.box(picture, [panel.note], middle=True) if panel.note else picture

    def _foot(self, panel: Panel) -> Picture:
        foot = text.strip([panel.caption, ""], self.panel[1], self._letter_px)
        if panel.is_heat:
            self._add_heat_bar(foot)
        else:
            self._add_legend(foot, panel.legend)
        return foot

    def _add_heat_bar(self, foot: Picture) -> None:
        """Explain the colours of a heat map: what share of the work at a pixel was done again."""
        letter_px, (left, baseline) = self._letter_px, self._second_line()
        room = foot.shape[1] - 2 * left
        before, after = "work done again at a pixel: none", "all"
        bar_px = min(round(10 * letter_px), room // 3)
        text_px = room - bar_px - 2 * left
        while letter_px > text.LEAST_PX and text_px < sum(
            text.width_px(part, letter_px) for part in (before, after)
        ):
            letter_px -= 0.5
        before = text.cut(before, letter_px, text_px - text.width_px(after, letter_px))
        text.write(foot, before, (left, baseline), letter_px)
        x = left + text.width_px(before, letter_px) + left
        bar = foot[baseline - round(self._letter_px) : baseline, x : x + bar_px]
        # its left end is what nothing was done for: grey
        values = np.broadcast_to(np.linspace(0, 1, bar.shape[1], dtype=np.float32), bar.shape[:2])
        bar[:] = overlay.heat(np.full_like(bar, 128), values)
        text.write(foot, after, (x + bar_px + left, baseline), letter_px)

    def _add_legend(self, foot: Picture, legend: Sequence[tuple[text.Colour, str]]) -> None:
        """Name the classes' colours, as many as there is room for."""
        side, (x, baseline) = round(self._letter_px), self._second_line()
        end = foot.shape[1] - x
        for index, (colour, name) in enumerate(legend):
            left = len(legend) - index
            more = f"+{left} more"
            reserved = text.width_px(more, side) + side if left > 1 else 0
            name = text.cut(text.plain(name), side, 16 * side)
            if x + 1.5 * side + text.width_px(name, side) + reserved > end:
                text.write(foot, text.cut(more, side, end - x), (x, baseline), side)
                return
            foot[baseline - side : baseline, x : x + side] = colour
            text.write(foot, name, (x + round(1.5 * side), baseline), side)
            x += round(1.5 * side) + text.width_px(name, side) + side

    def _second_line(self) -> tuple[int, int]:
        """Give where the second line below a panel begins: (x, y) on its base line."""
        line_px = round(self._letter_px * text.LINE)
        return round(self._letter_px), round(line_px * 1.85)
