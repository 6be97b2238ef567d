"""The saved picture: what is written where, readable at any size and covering little."""

from __future__ import annotations

import numpy as np
import pytest

from torchdelta.video import overlay, text
from torchdelta.video.board import LEAST_SIZE, Board, Panel

SIZES = [(8, 8), (33, 50), (64, 96), (224, 384), (96, 1280), (720, 1280), (1280, 720)]


def flat(h: int, w: int, level: int = 200) -> np.ndarray:
    return np.full((h, w, 3), level, np.uint8)


def covered(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_label_box_covers_less_than_a_tenth(size: tuple[int, int], count: int) -> None:
    picture = flat(*size)
    classes = [("a class with quite a long name, as ImageNet has them", 0.98), ("ant", 0.01),
               ("hook", 0.005)][:count]  # fmt: skip
    there = covered(picture, overlay.labels(picture, classes))
    rows, cols = np.nonzero(there)
    if there.any():
        box = (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)
        assert box < 0.1 * size[0] * size[1]
    if min(size) >= 64:
        # a box in the upper left corner
        assert rows.max() < size[0] / 2
        assert rows.min() < size[0] / 8
        assert cols.min() < size[1] / 8


@pytest.mark.parametrize("size", [(240, 400), (720, 1280)])
def test_three_labels_fit_where_a_person_looks_at_them(size: tuple[int, int]) -> None:
    picture = flat(*size)
    names = [("soccer ball", 0.5), ("croquet ball", 0.2), ("swing", 0.1)]
    heights = [
        np.nonzero(covered(picture, overlay.labels(picture, names[:count])))[0].max()
        for count in (1, 2, 3)
    ]
    assert heights[0] < heights[1] < heights[2]
    assert overlay.labels(picture, names).max() > 230


def test_text_has_letters_that_the_font_has() -> None:
    assert text.plain("café … 日本") == "cafe .. ??"
    picture = flat(240, 400)
    np.testing.assert_array_equal(
        overlay.labels(picture, [("é", 1.0)]), overlay.labels(picture, [("e", 1.0)])
    )


def test_a_line_becomes_smaller_and_is_cut_at_last() -> None:
    line, letter_px = text.fitting("a" * 20, 20, 5000)
    assert (line, letter_px) == ("a" * 20, 20)
    line, letter_px = text.fitting("a" * 20, 20, 200)
    assert line == "a" * 20
    assert text.LEAST_PX <= letter_px < 20
    line, letter_px = text.fitting("a" * 200, 20, 200)
    assert line.endswith("a..")
    assert letter_px == text.LEAST_PX
    assert text.width_px(line, letter_px) <= 200
    assert text.fitting("abc", 20, 2)[0] == ""


@pytest.mark.parametrize(
    ("size", "factor"),
    [((64, 96), 5), ((33, 50), 8), ((224, 384), 2), ((240, 400), 1), ((720, 1280), 1),
     ((8, 1000), 1)],
)  # fmt: skip
def test_small_pictures_are_enlarged_by_whole_factors(size: tuple[int, int], factor: int) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), np.uint8)
    board = Board(size, 2)
    assert board.factor == factor
    drawn = board.draw("title", [Panel(picture, "a"), Panel(255 - picture, "b")])
    assert drawn.shape == (*board.size, 3)
    for index, expected in enumerate((picture, 255 - picture)):
        y, x = board.corner(index)
        shown = drawn[y : y + size[0] * factor, x : x + size[1] * factor]
        np.testing.assert_array_equal(shown, expected.repeat(factor, 0).repeat(factor, 1))
    if max(size) < 1000:
        assert board.panel[0] >= LEAST_SIZE[0]
        assert board.panel[1] >= LEAST_SIZE[1]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2)])
def test_panels_never_overlap(count: int, columns: int) -> None:
    board = Board((240, 400), count)
    drawn = board.draw("", [Panel(flat(240, 400, 50 + n), "") for n in range(count)])
    assert drawn.shape[1] == columns * 400
    for n in range(count):
        assert (drawn == 50 + n).all(-1).sum() == 240 * 400


def line(picture: np.ndarray, top: int, height: int) -> np.ndarray:
    return picture[top : top + height].max(-1) > 150


def test_title_caption_and_note_are_written_outside_and_inside() -> None:
    board, picture = Board((240, 400), 1), flat(240, 400, 0)
    said = {
        "nothing": board.draw("", [Panel(picture, "")]),
        "title": board.draw("net  tolerance 0.04  frame 3  9.1 ms", [Panel(picture, "")]),
        "caption": board.draw("", [Panel(picture, "dense network")]),
        "note": board.draw("", [Panel(flat(240, 400, 0), "", note="first frame: all computed")]),
    }
    y, _ = board.corner(0)
    where = {name: np.nonzero(covered(said["nothing"], drawn))[0] for name, drawn in said.items()}
    assert where["title"].max() < y
    assert where["caption"].min() >= y + 240
    assert y + 100 < where["note"].min()
    assert where["note"].max() < y + 140


def test_legends_have_the_colours_that_the_picture_has() -> None:
    board, picture = Board((240, 400), 1), flat(240, 400, 0)
    foot = board.corner(0)[0] + 240
    colours = [overlay.colour_of(n) for n in (1, 2)]
    legend = [(colours[0], "disc"), (colours[1], "box")]
    drawn = board.draw("", [Panel(picture, "", legend=legend)])[foot:]
    for colour in colours:
        assert (drawn == colour).all(-1).sum() > 40
    assert (drawn == overlay.colour_of(3)).all(-1).sum() == 0
    # the palette is the one that classes are drawn in
    full = overlay.segmentation(picture, np.full((240, 400), 2), alpha=1.0)
    assert tuple(full[0, 0]) == colours[1]
    # more than there is room for
    many = [(overlay.colour_of(n), f"class {n}") for n in range(1, 40)]
    drawn = board.draw("", [Panel(picture, "", legend=many)])[foot:]
    shown = [(drawn == colour).all(-1).any() for colour, _ in many]
    assert shown[0]
    assert not shown[-1]
    assert shown == sorted(shown, reverse=True)

    heat = board.draw("", [Panel(picture, "", is_heat=True)])[foot:]
    hottest = overlay.heat(flat(1, 1, 128), np.ones((1, 1)))[0, 0]
    assert np.abs(heat.astype(int) - hottest).max(-1).min() < 4


@pytest.mark.parametrize("size", SIZES)
def test_boards_of_any_size(size: tuple[int, int]) -> None:
    """Long texts, many classes, pictures of another size: the board keeps its size."""
    board = Board(size, 3)
    legend = [(overlay.colour_of(n), "x" * 50) for n in range(1, 9)]
    other = flat(17, 400)
    drawn = board.draw(
        "title " * 80,
        [Panel(other, "caption " * 80, labels=[("y" * 99, 0.5)], legend=legend),
         Panel(flat(*size), "", note="n" * 300), Panel(flat(1, 1), "c" * 99, is_heat=True)],
    )  # fmt: skip
    assert drawn.shape == (*board.size, 3)
    assert drawn.dtype == np.uint8
