"""What `torchdelta run --save` draws: the result, the camera's world, what was recomputed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import torchdelta
from torchdelta.cli.panels import OUTLINE_RGB, Mosaic, Shown, panels, whereabouts
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.homography import shift
from torchdelta.tasks import Reading
from torchdelta.video import overlay

FRAME, WINDOW = (20, 28), (24, 32)
WORLD = np.random.default_rng(0).integers(1, 256, (400, 400, 3), np.uint8)
# of the first window's corner
START = (150, 150)


def seen(y: int, x: int) -> np.ndarray:
    return WORLD[START[0] + y : START[0] + y + FRAME[0], START[1] + x : START[1] + x + FRAME[1]]


def test_the_mosaic_shows_the_world_as_far_as_it_was_seen() -> None:
    """Frames at known places; the canvas reaches half a window beyond the window on each side."""
    mosaic, known = Mosaic(), np.zeros(WORLD.shape[:2], bool)
    (h, w), at = WINDOW, START
    assert not mosaic.draw((48, 64)).any()
    places = [(2, 2), (5, 3), (9, 12), (30, 12), (30, 60), (18, 20), (2, -40), (-30, -40), (2, 2)]
    places += [(300, 300)]
    origin = (0, 0)
    for n, (y, x) in enumerate(places):
        new = n in (0, len(places) - 1)
        if new:
            # a new reference: nothing of what was seen before belongs to its world
            known[:] = False
            y, x, origin = 2, 2, (0, 0)
        else:
            origin = (y // 4 * 4 - 4 * (y % 4 == 0), x // 4 * 4 - 4 * (x % 4 == 0))
        anchored = "first frame" if new else None
        frame = seen(y, x)
        mosaic.add(Aligned(FRAME, WINDOW, shift(x, y), origin, anchored=anchored), frame)
        top, left = at[0] + origin[0] - h // 2, at[1] + origin[1] - w // 2
        reach = np.zeros_like(known)
        reach[top : top + 2 * h, left : left + 2 * w] = True
        known &= reach
        known[at[0] + y : at[0] + y + FRAME[0], at[1] + x : at[1] + x + FRAME[1]] = True
        wanted = np.where(known[..., None], WORLD, 0)[top : top + 2 * h, left : left + 2 * w]
        picture = mosaic.draw((2 * h, 2 * w))
        outlined = (picture == OUTLINE_RGB).all(-1) & (wanted != OUTLINE_RGB).any(-1)
        assert np.array_equal(picture[~outlined], wanted[~outlined]), n
        # the outline lies on the window's edge, and nowhere else
        rows, cols = np.nonzero(outlined)
        assert abs(rows.min() - h // 2) <= 1
        assert abs(rows.max() - (h // 2 + h - 1)) <= 1
        assert abs(cols.min() - w // 2) <= 1
        assert abs(cols.max() - (w // 2 + w - 1)) <= 1
        assert not outlined[h // 2 + 3 : h // 2 + h - 3, w // 2 + 3 : w // 2 + w - 3].any()


def test_panels_of_a_followed_camera() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    h, w = size = (64, 96)
    fast = torchdelta.compile(
        Net().eval(), torch.zeros(1, 3, *size).byte(), engine="torch", tolerance=0.0
    )
    session, mosaic = fast.session(motion="given"), Mosaic()
    for n in range(4):
        y, x = 40 + 2 * n, 50 + 3 * n
        frame = WORLD[y : y + h, x : x + w].copy()
        if n == 3:
            frame[20:30, 40:52] ^= 255
        told = {"a": shift(3, 2)} if n else {}
        result = session.step({"a": frame}, homographies=told, record=True)["a"]
        mine, world, recomputed = panels(
            Shown(frame, result, Reading(None)), compared=False, mosaic=mosaic
        )
        # left what the task draws, on the frame as it came
        assert np.array_equal(mine.picture, frame)
        assert (recomputed.note == "first frame: all computed") == (n == 0)
        assert recomputed.is_heat
    assert result.aligned is not None
    assert result.aligned.origin != (0, 0)
    grey = overlay.heat(frame, np.zeros(size))
    heat = (recomputed.picture != grey).any(-1)
    # in the frame's place: the object, with what its change reaches
    assert heat[21:29, 41:51].all()
    assert not heat[6:16, 6:-8].any()
    assert not heat[20:30, 6:36].any()
    assert not heat[20:30, 56:-8].any()
    # what came into view with the last frame
    assert heat[20:40, -2:].all()
    # between them the world at half the scale, the frame in the middle
    there = world.picture[h // 4 + 4 : -h // 4 - 12, w // 4 + 5 : w - w // 4 - 5]
    assert np.abs(there.astype(int).mean() - frame.mean()) < 12
    assert (world.picture[: h // 4 - 6] == 0).all()
    outline = (np.abs(world.picture.astype(int) - OUTLINE_RGB).max(-1) < 60).sum(1)
    assert outline[h // 4 - 2 : h // 4 + 3].max() > 30


def test_panels_of_a_refused_frame_and_of_a_fixed_camera() -> None:
    fast = torchdelta.compile(nn.Conv2d(3, 2, 3).eval(), torch.zeros(1, 3, 64, 96).byte())
    session, frame = fast.session(2), WORLD[:64, :96]
    result = session.step({"a": frame}, record=True)["a"]
    mosaic = Mosaic()
    shown = Shown(frame, result, Reading(None))
    parts = panels(shown, compared=False, mosaic=mosaic)
    # of a camera that is not followed the window is the frame
    assert np.array_equal(mosaic._canvas[32:96, 48:144], frame)
    assert parts[1].caption == "the camera is not followed"
    assert len(panels(shown, compared=False, mosaic=None)) == 2
    before = mosaic._canvas.copy()
    refused = session.step({"b": frame[1:]})["b"]
    told = panels(Shown(frame[1:], refused, Reading(None)), compared=True, mosaic=mosaic)
    assert len(told) == 4
    assert [part.note for part in told] == ["refused", "refused", None, "refused"]
    assert np.array_equal(mosaic._canvas, before)


def test_a_whole_frame_is_named_and_not_painted() -> None:
    """A first frame, or one that was refreshed: the picture stays to be seen, with the reason."""
    fast = torchdelta.compile(nn.Conv2d(3, 2, 3).eval(), torch.zeros(1, 3, 64, 96).byte())
    session, frame = fast.session(), WORLD[:64, :96]
    grey = overlay.heat(frame, np.zeros((64, 96)))
    for reason in ("first frame", "refresh"):
        result = session.step({"a": frame}, record=True)["a"]
        last = panels(Shown(frame, result, Reading(None)), compared=False, mosaic=None)[-1]
        assert last.note == f"{reason}: all computed"
        assert np.array_equal(last.picture, grey)
        session.stream("a").refresh()
    session.step({"a": frame})
    changed = frame.copy()
    changed[20:40, 30:60] ^= 255
    result = session.step({"a": changed}, record=True)["a"]
    last = panels(Shown(changed, result, Reading(None)), compared=False, mosaic=None)[-1]
    assert last.note is None
    assert not np.array_equal(last.picture, overlay.heat(changed, np.zeros((64, 96))))
    assert f"{result.stats.mac_share:.1%} of the work" in last.caption


def test_denses_answer_stands_beside_ours() -> None:
    fast = torchdelta.compile(nn.Conv2d(1, 2, 3).eval(), torch.zeros(1, 1, 64, 96).byte())
    frame = WORLD[:64, :96, :1]
    result = fast.session().step({"a": frame}, record=True)["a"]
    mine = Reading(None, lambda rgb: rgb // 2, labels=(("cat", 0.9),))
    dense = Reading(None, lambda rgb: rgb // 4, legend=(((1, 2, 3), "dog"),))
    left, right, _ = panels(
        Shown(frame, result, mine, dense, "another class"), compared=True, mosaic=None
    )
    grey = np.repeat(frame, 3, 2)
    assert np.array_equal(left.picture, grey // 2)
    assert np.array_equal(right.picture, grey // 4)
    assert (left.caption, left.labels) == ("torchdelta", (("cat", 0.9),))
    assert right.caption == "dense network: another class"
    assert right.legend == (((1, 2, 3), "dog"),)


def test_where_a_window_lies_in_words() -> None:
    assert whereabouts((0, -48)) == "the window lies 48 px left of its start"
    assert whereabouts((32, 16)) == "the window lies 16 px right and 32 px down of its start"
    assert whereabouts((-32, 0)) == "the window lies 32 px up of its start"
    assert whereabouts((0, 0)) == "the window lies where it began"
