"""Sessions that follow cameras by given homographies equal the dense network on the window."""

from __future__ import annotations

from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import torchdelta
from chain_nets import conv
from moving_cameras import (
    ENGINES,
    PAN_SIZE,
    SIZE,
    Camera,
    Picture,
    compiled,
    dense_on_published,
    path,
    placed,
    play,
    published,
    to_previous,
    view,
    world,
)
from support import same_bits
from torchdelta import FrameError, StreamError
from torchdelta.motion.homography import shift
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.session import Session
from torchdelta.videoframe import VideoFrame

# P1 at tolerance 0, float32
CLOSE = 1e-5
DIRECTIONS = [d for d in product((-1, 0, 1), repeat=2) if d != (0, 0)]


def glimpse(y: float, x: float, object_at: int | None = None) -> Picture:
    """Give what a camera sees at a place that need not be whole, with an object that moves."""
    if y == round(y) and x == round(x):
        frame = view(int(y), int(x))
    else:
        middle = (x + (SIZE[1] - 1) / 2, y + (SIZE[0] - 1) / 2)
        frame = cv2.getRectSubPix(world(), SIZE[::-1], middle)
    if object_at is not None:
        top, left = 7 + 5 * object_at % 40, 9 + 11 * object_at % 60
        frame[top : top + 6, left : left + 7] = (250, 20 * object_at % 250, 30)
    return frame


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [(11, 15), (9.4, 12.7)], ids=["whole", "sub-pixel"])
def test_pans_with_objects_equal_dense(engine: str, step: tuple[float, float]) -> None:
    """In all directions, round the rings, with exact borders at tolerance 0."""
    fast = compiled(engine)
    session = fast.session(motion="given", border="exact")
    places = [(180.0, 160.0)]
    for dy, dx in DIRECTIONS:
        for _ in range(4):
            y, x = places[-1]
            places.append((y + dy * step[0], x + dx * step[1]))
    moves = 0
    for n, (y, x) in enumerate(places):
        frame = glimpse(y, x, n)
        before = places[max(0, n - 1)]
        result = session.step({"a": frame}, homographies={"a": shift(x - before[1], y - before[0])})
        result = result["a"]
        assert result.aligned is not None
        assert dense_on_published(fast, session, result) <= CLOSE, n
        assert result.stats.first == (n == 0)
        moves += result.stats.moved
        # what the window shows inside the frame is the frame
        there = published(session)[0]
        shown, mask = placed(fast, result, frame)
        assert mask.sum() > 0.95 * SIZE[0] * SIZE[1]
        assert torch.allclose(there[:, mask], shown[:, mask], atol=1e-6)
        back = result.to_frame_map(there.mul(255).round().to(torch.uint8)).permute(1, 2, 0).numpy()
        off = np.abs(back.astype(int) - frame)[2:-2, 2:-2]
        assert off.max() == 0 if step[0] == 11 else off.mean() < 6
        if n and step[0] == 11:
            # the new strip, what the frame shows first of the window's margin, and the object
            sides = zip(session.window, result.aligned.moved, strict=True)
            strip = np.prod(session.window) - np.prod([n - abs(by) for n, by in sides])
            assert 0 < result.stats.changed_input <= strip / np.prod(SIZE) + 0.15
    for axis in (0, 1):
        # round each ring once and more, in both senses
        assert 12 * step[axis] > 1.3 * session.window[axis]
    assert moves == session.stream("a").stats.moves == len(places) - 1
    assert session.stream("a").stats.reasons == {"first frame": 1}
    assert session.stream("a").audit().ok


@pytest.mark.parametrize("engine", ENGINES)
def test_two_cameras_in_opposite_directions(engine: str) -> None:
    fast = compiled(engine)
    there, back = path((100, 100), (2, 5), 14), path((280, 300), (-2, -5), 14)
    together = fast.session(2, motion="given")
    alone = {name: fast.session(motion="given") for name in "ab"}
    cameras = [Camera("a", there), Camera("b", back)]
    lone = {"a": Camera("a", there), "b": Camera("b", back)}
    for _ in range(14):
        results = play(together, *cameras)
        for name, result in results.items():
            expected = play(alone[name], lone[name])[name]
            assert result.origin == expected.origin
            for x, y in zip(result.output, expected.output, strict=True):
                assert same_bits(x, y).all()
    assert results["a"].origin[1] > 0 > results["b"].origin[1]
    assert together.stats.frames == 28


@pytest.mark.parametrize("engine", ENGINES)
def test_join_leave_reset_while_moving(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(2, motion="given", border="exact")
    cameras = {name: Camera(name, path((60, 60), (3, 4), 40)) for name in "abc"}
    for n in range(18):
        names = "a" if n < 4 else "ab" if n < 9 else "bc"
        if n == 9:
            session.stream("a").leave()
        if n == 12:
            session.stream("b").reset()
        if n == 14:
            session.stream("c").refresh()
        for name, result in play(session, *(cameras[name] for name in names)).items():
            assert dense_on_published(fast, session, result) <= CLOSE, (n, name)
    assert session.streams == ["b", "c"]
    assert session.stream("b").stats.reasons == {"reset": 1}
    assert session.stream("b").stats.frames == 6
    assert session.stream("c").stats.reasons == {"first frame": 1, "refresh": 1}
    with pytest.raises(StreamError, match="no free slot"):
        session.stream("d").join()
    assert session.state_bytes > 0
    session.stream("b").leave()
    session.stream("c").leave()
    # a session that nobody is in keeps no state
    assert session.state_bytes == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_relative_to_reference(engine: str) -> None:
    """Also across a new reference: from then on homographies lead to that one."""
    fast = compiled(engine)
    one, other = (fast.session(motion="given", border="exact") for _ in range(2))
    jump = 9
    places = [*path((90, 90), (2, 3), jump), *path((300, 40), (3, -4), 6)]
    camera, reference = Camera("a", places), places[0]
    for n, here in enumerate(places):
        a = play(one, camera)["a"]
        b = other.step(
            {"a": view(*here)},
            homographies={"a": to_previous(here, reference)},
            relative_to="reference",
        )["a"]
        assert a.aligned is not None
        assert b.aligned is not None
        assert a.aligned.anchored == b.aligned.anchored
        assert a.aligned.anchored == {0: "first frame", jump: "jump"}.get(n)
        reference = here if b.aligned.anchored else reference
        assert np.allclose(a.aligned.pose, b.aligned.pose)
        assert a.origin == b.origin
        check_exact(fast, other, b, view(*here))


def about_middle(size: tuple[int, int], part: np.ndarray) -> np.ndarray:
    """Let a motion leave the frame's middle where it is."""
    middle = shift((size[1] - 1) / 2, (size[0] - 1) / 2)
    return middle @ part @ np.linalg.inv(middle)


def turned(degrees: float, scale: float = 1.0) -> np.ndarray:
    return np.vstack([cv2.getRotationMatrix2D((0, 0), -degrees, scale), [0, 0, 1]])


def perspective(along: float) -> np.ndarray:
    return np.array([[1, 0, 0], [0, 1, 0], [along, 0, 1]])


def check_exact(
    fast: torchdelta.CompiledModel, session: Session, result: torchdelta.Result,
    frame: Picture,
) -> None:  # fmt: skip
    """P1, and that the window shows the frame where it says; a new reference nothing else."""
    assert dense_on_published(fast, session, result) <= CLOSE
    assert result.aligned is not None
    assert result.stats.reason == result.aligned.anchored
    there = published(session)[0]
    shown, mask = placed(fast, result, frame)
    assert torch.allclose(there[:, mask], shown[:, mask], atol=1e-6)
    if result.aligned.anchored:
        assert mask.sum() == frame.shape[0] * frame.shape[1]
        assert (there[:, ~mask] == 0).all()


# motions of the frames, each to the one before; the last one is too much
TOO_FAR: dict[str, list[np.ndarray | None]] = {
    "rotation": [about_middle(SIZE, turned(8))] * 2,
    "scale": [about_middle(SIZE, turned(0, part)) for part in (0.9, 0.85)],
    "stretch": [about_middle(SIZE, np.diag([1.55, 0.75, 1]))],
    "outside the window": [about_middle(SIZE, turned(0, 1.2))],
    "singular pose": [about_middle(SIZE, perspective(-0.001) @ turned(0, 0.88)),
                      perspective(-0.0119)],
    "jump": [shift(4000, 3)],
    "no homography": [None],
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_new_references_of_given_motion_equal_dense(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="given", border="exact")
    y, x = 120, 150
    session.step({"a": view(y, x)})
    for reason, motions in TOO_FAR.items():
        script = [(motion, None) for motion in motions[:-1]] + [(motions[-1], reason)]
        # the camera goes on from the new reference
        for motion, why in script + [(shift(5, 3), None)] * 3:
            frame = view(y, x)
            result = session.step({"a": frame}, homographies={"a": motion})["a"]
            assert result.stats.reason == why, (reason, result.aligned)
            assert result.aligned is not None
            assert (result.aligned.detail is None) == (why in (None, "no homography"))
            check_exact(fast, session, result, frame)
            y, x = y + 3, x + 5
    assert session.stream("a").stats.reasons == {"first frame": 1} | dict.fromkeys(TOO_FAR, 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("motion", "reason"),
    [(turned(3.5), "rotation"), (turned(0, 0.93), "scale"),
     (turned(0, 1.02), "outside the window")],
    ids=["roll", "zoom-in", "zoom-out"],
)  # fmt: skip
def test_roll_and_zoom_until_a_new_reference(engine: str, motion: np.ndarray, reason: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="features", border="exact", size=PAN_SIZE)
    pose, reasons = shift(120, 150), []
    for _ in range(9):
        how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        frame = cv2.warpPerspective(world(), pose, PAN_SIZE[::-1], flags=how)
        result = session.step({"a": frame})["a"]
        check_exact(fast, session, result, frame)
        reasons.append(result.stats.reason)
        pose = pose @ about_middle(PAN_SIZE, motion)
    assert reasons[:3] == ["first frame", None, None]
    assert set(reasons[3:]) == {None, reason}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_foreign_frame_becomes_the_reference(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="features", border="exact", size=PAN_SIZE)
    reasons = []
    for n in range(10):
        frame = view(60 + 3 * n, 80 + 5 * n, PAN_SIZE)
        if n >= 4:
            # another part of the world, negative
            frame = 255 - view(250 + 2 * n, 200 - 4 * n, PAN_SIZE)
        if n >= 7:
            # the same again as a dull picture of another place
            frame = frame // 4 + 95 + view(20 + 2 * n, 10 + 3 * n, PAN_SIZE) // 8
        result = session.step({"a": frame})["a"]
        check_exact(fast, session, result, frame)
        reasons.append(result.stats.reason)
    expected = ["first frame"] + [None] * 3 + ["scene cut", None, None, "low confidence"]
    assert reasons == expected + [None] * 2


BAD_HOMOGRAPHIES = {
    "singular": (np.zeros((3, 3)) + np.diag([1, 0, 1]), "singular"),
    "nan": (np.full((3, 3), np.nan), "NaN"),
    "infinite": (np.diag([np.inf, 1, 1]), "infinite"),
    "shape": (np.eye(2), "3x3"),
    "words": ("eye", "3x3"),
    "mirror": (np.diag([-1.0, 1, 1]), "mirrors"),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_input_leaves_state_intact(engine: str) -> None:
    fast = compiled(engine)
    session, clean = (fast.session(2, motion="given") for _ in range(2))
    places = path((100, 100), (3, 4), 12)
    bad = list(BAD_HOMOGRAPHIES.values())
    for n, here in enumerate(places):
        # "to the previous frame" would lead to what was refused
        frame, there = view(*here), to_previous(here, places[0])
        if n in (2, 5):
            for homography, said in bad:
                results = session.step(
                    {"a": frame, "b": frame}, homographies={"a": homography, "b": np.eye(3)}
                )
                assert results["b"].error is None
                with pytest.raises(FrameError, match=said):
                    results["a"].unwrap()
                with pytest.raises(FrameError, match=said):
                    results["a"].to_frame_points([[0, 0]])
            assert session.step({"a": frame[1:]})["a"].error is not None
            region = {"a": np.ones((3, 3), bool)}
            assert "roi" in str(session.step({"a": frame}, roi=region)["a"].error)
        told: Any = {"homographies": {"a": there}, "relative_to": "reference"}
        a, b = (s.step({"a": frame}, **told)["a"] for s in (session, clean))
        assert a.origin == b.origin
        assert a.stats.first == b.stats.first
        for x, y in zip(a.output, b.output, strict=True):
            assert same_bits(x, y).all()
    with pytest.raises(StreamError, match="homographies names 'q'"):
        session.step({"a": frame}, homographies={"q": np.eye(3)})
    with pytest.raises(ValueError, match="relative_to"):
        session.step({"a": frame}, relative_to="yesterday")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", ["frame", "homography"])
def test_a_homography_to_a_refused_frame_is_not_followed(engine: str, bad: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="given", border="exact")
    camera = Camera("a", path((100, 100), (3, 4), 8))
    reasons = []
    for n in range(8):
        frame, there = camera.next()
        if n == 3:
            wrong = frame[1:] if bad == "frame" else frame
            given = {"a": there if bad == "frame" else np.zeros((3, 3))}
            assert session.step({"a": wrong}, homographies=given)["a"].error is not None
            continue
        result = session.step({"a": frame}, homographies={"a": there})["a"]
        reasons.append(result.stats.reason)
        assert dense_on_published(fast, session, result) <= CLOSE
        assert result.aligned is not None
        back = result.to_frame_map(published(session)).mul(255).round().to(torch.uint8)
        assert np.array_equal(back[0].permute(1, 2, 0).numpy(), frame)
    assert reasons == ["first frame", None, None, "refused frame", None, None, None]


def test_vectors_that_lead_to_a_refused_frame_are_not_used() -> None:
    session = compiled("torch", 0.04).session(motion="codec")
    y, x = np.mgrid[4 : SIZE[0] : 8, 4 : SIZE[1] : 8].reshape(2, -1) - 0.5
    blocks = np.stack([x, y, *(np.full_like(x, n) for n in (3, 2, 64))], 1).astype(np.float32)
    vectors = Vectors(blocks, SIZE, kept=True)
    for n, here in enumerate(path((90, 90), (2, 3), 5)):
        frame = view(*here)
        if n == 2:
            assert (
                session.step({"a": VideoFrame(frame[1:], vectors=vectors)})["a"].error is not None
            )
            continue
        aligned = session.step({"a": VideoFrame(frame, vectors=vectors)})["a"].aligned
        assert aligned is not None
        by = 2 if n == 3 else 1
        assert aligned.motion.estimator == (None, "codec", None, "features", "codec")[n]
        if n:
            assert np.allclose(aligned.motion.homography, shift(3 * by, 2 * by), atol=0.5)


def test_wrong_settings() -> None:
    fast = compiled("torch")
    with pytest.raises(ValueError, match='expected one of "none", "auto"'):
        fast.session(motion="sideways")  # type: ignore[call-overload]
    for motion in ("none", "given"):
        with pytest.raises(ValueError, match="border is 'soft'"):
            fast.session(motion=motion, border="soft")  # type: ignore[call-overload]
    with pytest.raises(StreamError, match="0"):
        fast.session(0, motion="given")
    for grain in (0, 2.5, True, 1000):
        with pytest.raises(ValueError, match="expected a whole number of pixels"):
            fast.session(motion="given", grain=grain)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="expected a whole number of pixels"):
            fast.session(grain=grain)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="motion=\"given\", stream 'a' has"):
        fast.session(motion="features").step({"a": view(0, 0)}, homographies={"a": np.eye(3)})
    fixed = torchdelta.compile(
        conv(3, 3, 3).eval(), torch.zeros(1, 3, 8, 8).byte(), fixed_size=True
    )
    with pytest.raises(ValueError, match="fixed_size"):
        fixed.session(motion="auto")
