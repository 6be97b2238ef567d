"""Sessions that follow moving cameras, and their results back in the frame."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from statistics import median_low
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import conv
from support import ENGINE_NAMES, GPU_NAMES, same_bits
from torchdelta import CaptureError, FrameError, StreamError
from torchdelta.engines import Engine
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.features import Features
from torchdelta.motion.homography import shift
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.vectors import Vectors
from torchdelta.ops.gate import input_gate
from torchdelta.runtime.inspect import frame_state, states, window_engine, window_state
from torchdelta.runtime.placement import watch
from torchdelta.runtime.placement.followed import ESTIMATORS
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.session import Session

ENGINES = (*ENGINE_NAMES, *GPU_NAMES)
SIZE = (60, 84)
# P1 at tolerance 0, float32
CLOSE = 1e-5
Picture = np.ndarray


@cache
def compiled(engine: str, tolerance: float = 0.0) -> torchdelta.CompiledModel:
    """Compile a network of total stride 4 that gives a small map and one of the input's size."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Sequential(conv(3, 6, 3, 2), nn.ReLU(), conv(6, 6, 3, 2))
            self.up = nn.Sequential(nn.Upsample(scale_factor=4), conv(6, 2, 3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            small = self.down(x)
            return small, self.up(small)

    torch.manual_seed(0)
    example = torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    model = Net().eval().to("cuda" if engine in GPU_NAMES else "cpu")
    return torchdelta.compile(
        model, example, engine=engine, tolerance=tolerance, input_range=(0, 1)
    )


@cache
def world(side: int = 420) -> Picture:
    """Make a large textured picture, uint8 [side, side, 3]."""
    rng = np.random.default_rng(5)
    layers = [
        cv2.resize(rng.random((side // k, side // k, 3), np.float32), (side, side),
                   interpolation=cv2.INTER_CUBIC)
        for k in (5, 11, 40)
    ]  # fmt: skip
    return np.clip(sum(layers) / 3 * 255, 0, 255).astype(np.uint8)


def view(y: int, x: int, size: tuple[int, int] = SIZE) -> Picture:
    """Give what a camera sees whose frame begins at a pixel of the world."""
    return world()[y : y + size[0], x : x + size[1]].copy()


def path(start: tuple[int, int], step: tuple[int, int], count: int) -> list[tuple[int, int]]:
    return [(start[0] + n * step[0], start[1] + n * step[1]) for n in range(count)]


def to_previous(here: tuple[int, int], before: tuple[int, int]) -> np.ndarray:
    return shift(here[1] - before[1], here[0] - before[0])


class Camera:
    """Walks over the world and tells its homographies."""

    def __init__(self, name: str, places: list[tuple[int, int]]) -> None:
        self.name, self.places, self.at = name, places, 0

    def next(self) -> tuple[Picture, np.ndarray]:
        here = self.places[self.at]
        before = self.places[max(0, self.at - 1)]
        self.at += 1
        return view(*here), to_previous(here, before)


def play(session: Session, *cameras: Camera, **kwargs: Any) -> dict[str, torchdelta.Result]:
    shown = {camera.name: camera.next() for camera in cameras}
    return session.step(
        {name: frame for name, (frame, _) in shown.items()},
        homographies={name: h for name, (_, h) in shown.items()},
        **kwargs,
    )


def dense_on_published(
    fast: torchdelta.CompiledModel, session: Session, result: torchdelta.Result
) -> float:
    expected = fast.dense(session.published(result.stream))
    return torchdelta.relative_error(result.output, expected)


def published(session: Session, stream: str = "a") -> Tensor:
    """Give what the network has been shown, [1, 3, H, W] on the CPU."""
    return session.published(stream).cpu()


def placed(
    fast: torchdelta.CompiledModel, result: torchdelta.Result, frame: Picture
) -> tuple[Tensor, Tensor]:
    """Bring a frame into the window where the session does: [3, H, W] as published, bool [H, W]."""
    assert result.aligned is not None
    warped = result.aligned.warp(torch.from_numpy(frame).to(fast.device)).permute(2, 0, 1)
    return fast.preprocess(warped)[0].cpu(), torch.from_numpy(result.aligned.mask())


# ------------------------------------------------------------------------------ given homographies


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
    assert moves == session.stats("a").moves == len(places) - 1
    assert session.stats("a").reasons == {"first frame": 1}
    assert session.audit("a").ok


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
    assert together.stats().frames == 28


@pytest.mark.parametrize("engine", ENGINES)
def test_join_leave_reset_while_moving(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(2, motion="given", border="exact")
    cameras = {name: Camera(name, path((60, 60), (3, 4), 40)) for name in "abc"}
    for n in range(18):
        names = "a" if n < 4 else "ab" if n < 9 else "bc"
        if n == 9:
            session.leave("a")
        if n == 12:
            session.reset("b")
        if n == 14:
            session.refresh("c")
        for name, result in play(session, *(cameras[name] for name in names)).items():
            assert dense_on_published(fast, session, result) <= CLOSE, (n, name)
    assert session.streams == ["b", "c"]
    assert session.stats("b").reasons == {"reset": 1}
    assert session.stats("b").frames == 6
    assert session.stats("c").reasons == {"first frame": 1, "refresh": 1}
    with pytest.raises(StreamError, match="no free slot"):
        session.join("d")
    assert session.state_bytes > 0
    session.leave("b")
    session.leave("c")
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
    assert session.stats("a").reasons == {"first frame": 1} | dict.fromkeys(TOO_FAR, 1)


PAN_SIZE = (120, 160)


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
    vectors = {"a": Vectors(blocks, SIZE, kept=True)}
    for n, here in enumerate(path((90, 90), (2, 3), 5)):
        frame = view(*here)
        if n == 2:
            assert session.step({"a": frame[1:]}, vectors=vectors)["a"].error is not None
            continue
        aligned = session.step({"a": frame}, vectors=vectors)["a"].aligned
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


@cache
def edges(side: int = 420) -> Picture:
    """Make a large picture of thin lines, uint8 [side, side, 3]."""
    picture = np.full((side, side, 3), 40, np.uint8)
    picture[::9], picture[:, ::29] = 120, 160
    return picture


@pytest.mark.parametrize("engine", ENGINES)
def test_followed_cameras_are_gated_in_cells(engine: str) -> None:
    """Edges that lie a part of a pixel off are no change, and what is hidden is bounded."""
    fast = compiled(engine, 0.04)
    changed = {}
    for grain in (1, None):
        session = fast.session(motion="given", grain=grain)
        cells = session.grains[1]
        assert cells == grain or cells == 4
        for n in range(8):
            # the camera stands still, and is said to move by 0.3 px there and back
            frame = edges()[100:160, 100:184].copy()
            told = shift(0.3 if n % 2 else -0.3, 0.0)
            result = session.step({"a": frame}, homographies={"a": told} if n else {})["a"]
            assert result.aligned is not None
            shown, mask = placed(fast, result, frame)
            # nothing is left that the gate would let through
            assert not input_gate(
                shown.permute(1, 2, 0), published(session)[0].permute(1, 2, 0), 8.01 / 255,
                torch.ones(3), mask=mask, grain=cells,
            ).any()  # fmt: skip
        changed[cells] = session.stats("a").changed_input
    assert changed[1] > 0.1
    assert changed[4] < 0.02


@pytest.mark.parametrize("grain", [None, 3])
def test_cells_while_the_camera_stays_still(grain: int | None) -> None:
    fast = compiled("torch", 0.04)
    session = fast.session(motion="auto", grain=grain)
    for n in range(3):
        session.step({"a": view(100, 100 + n)})
    assert frame_state(session).input_grain == session.grains[0] == (grain or 1)
    assert fast.session(grain=grain).grain == (grain or 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_calling_with_homographies(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(2, motion="given")
    cameras = [Camera("0", path((90, 90), (1, 6), 6)), Camera("1", path((90, 200), (2, -5), 6))]
    for n in range(6):
        shown = [camera.next() for camera in cameras]
        frames = torch.from_numpy(np.stack([frame for frame, _ in shown])).permute(0, 3, 1, 2)
        given = np.stack([homography for _, homography in shown])
        outputs = fast(frames, homography=given)
        results = session.step(
            {str(i): frame for i, (frame, _) in enumerate(shown)},
            homographies={str(i): homography for i, (_, homography) in enumerate(shown)},
        )
        for i in range(2):
            for x, y in zip(outputs, results[str(i)].output, strict=True):
                assert same_bits(x[i : i + 1], y).all(), n
    assert fast.stats.frames == 12
    # of one of them nothing is known: a new reference, and the other goes on
    fast(frames, homography=[np.eye(3), None])
    assert fast.stats.reasons == {"first frame": 2, "no homography": 1}
    for wrong, said in (
        (np.eye(3), r"\[3, 3\] for 2 frames"), (np.zeros((2, 3, 3)), "row 0"),
        ([None], r"\[1\] for 2 frames"), ([np.eye(2), np.eye(3)], "differ in shape"),
        ([None, np.full((3, 3), np.nan)], "row 1: .* give None where"),
    ):  # fmt: skip
        with pytest.raises(FrameError, match=said):
            fast(frames, homography=wrong)
    assert fast.stats.frames == 14
    single = fast(view(0, 0), homography=torch.eye(3))
    assert single[1].shape[-2:] == session.window
    # without one it is a fixed camera's frame, of which nothing was seen: and the other way round
    assert fast(view(0, 0))[1].shape[-2:] == SIZE
    assert fast.stats.frames == 1
    fast(view(0, 9), homography=shift(9, 0))
    assert fast.stats.reasons == {"first frame": 1}


# ------------------------------------------------------------------------------- results, regions


@pytest.mark.parametrize("engine", ENGINES)
def test_results_lead_back_to_the_frame(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="given", border="exact")
    places = path((100, 100), (5, 7), 9)
    camera = Camera("a", places)
    for _ in places:
        result = play(session, camera)["a"]
    corner = result.aligned.to_window[:2, 2]  # type: ignore[union-attr]
    point = [[10.0, 20.0], [0.0, 0.0]]
    assert np.allclose(result.to_frame_points(np.array(point) + corner), point)
    box = np.array([4.0, 5.0, 30.0, 25.0])
    assert np.allclose(result.to_frame_boxes(box + np.tile(corner, 2)), box)
    # pixels of the small map are 4 wide
    assert np.allclose(result.to_frame_points([[2.0, 3.0]], 4), [9.5, 13.5] - corner)
    full = result.to_frame_map(result.output[1])
    assert full.shape == (1, 2, *SIZE)
    x, y = map(int, corner)
    assert torch.allclose(full, result.output[1][:, :, y : y + SIZE[0], x : x + SIZE[1]], atol=1e-4)
    labels = result.to_frame_map(result.output[1].argmax(1), fill=-1)
    assert labels.dtype == torch.int64
    assert labels.shape == (1, *SIZE)
    # of a still stream, nothing moves
    still = fast.session().step({"a": view(0, 0)})["a"]
    assert still.aligned is None
    assert np.allclose(still.to_frame_points(point), point)
    assert torch.equal(still.to_frame_map(still.output[1].argmax(1)), still.output[1].argmax(1))
    assert torch.allclose(still.to_frame_map(still.output[1]), still.output[1], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_shares_are_relative_to_the_frame(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="given")
    camera = Camera("a", path((100, 100), (0, 3), 10))
    first = play(session, camera)["a"]
    window = first.plan
    assert window.size == session.window == (64, 88)
    assert first.stats.mac_share == pytest.approx(window.macs / session.plan.macs)
    for _ in range(9):
        result = play(session, camera)["a"]
        assert result.stats.changed_input == pytest.approx(
            float(result.changed.sum()) / (SIZE[0] * SIZE[1])
        )
    stats = session.stats("a")
    assert stats.mac_share == pytest.approx(sum(s.mac_share for s in stats.per_step()), rel=1e-6)
    assert stats.plan.size == SIZE
    assert "windows of 64x88" in session.explain()


@pytest.mark.parametrize("engine", ENGINES)
def test_region_of_interest_moves_with_the_frame(engine: str) -> None:
    fast = compiled(engine)
    session = fast.session(motion="given")
    places = path((100, 100), (4, 4), 5)
    region = np.zeros(SIZE, bool)
    region[:, :40] = True
    for n, here in enumerate(places):
        # all of the frame changes each time
        frame = view(*here) ^ np.uint8(48 * n)
        homography = to_previous(here, places[max(0, n - 1)])
        result = session.step({"a": frame}, homographies={"a": homography}, roi={"a": region})["a"]
        back = result.to_frame_map(result.changed).cpu().numpy()
        if n:
            # the frame moves by 4: beyond the region, only what is new at its edges
            assert back[:, :40].all()
            assert not back[:52, 40:76].any()


# ----------------------------------------------------------------------------------------- auto


class Counting(Features):
    """Counts how often it is asked."""

    asked = 0

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Any:
        type(self).asked += 1
        return super().estimate(previous, current, vectors)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setitem(ESTIMATORS, "auto", Counting)
    Counting.asked = 0
    return Counting


SAVES_TIME, QUICKEST_MS, HOPELESS = watch.Watch._saves_time, watch.QUICKEST_MS, watch.HOPELESS


@pytest.fixture(autouse=True)
def _whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks as small as these are quicker computed than a motion is estimated."""
    monkeypatch.setattr(watch.Watch, "_saves_time", lambda self, share: True)
    monkeypatch.setattr(watch, "QUICKEST_MS", 0.0)
    monkeypatch.setattr(watch, "HOPELESS", math.inf)
    monkeypatch.setattr(watch.Watch, "_may_look", lambda self: True)
    monkeypatch.setattr(watch.Watch, "_saves_nothing", lambda self: False)


@pytest.mark.parametrize("engine", ENGINES)
def test_auto_follows_a_pan_and_rests(engine: str, counting: type[Counting]) -> None:
    size = (120, 160)
    fast = compiled(engine, 0.04)
    session = fast.session(motion="auto", size=size)
    session.waits = True
    still = [(150, 100)] * 12
    pan = path((150, 100), (1, 5), 26)
    rest = [pan[-1]] * (watch.RESTED + 12)
    followed, outputs = [], []
    for here in (*still, *pan, *rest):
        result = session.step({"a": view(*here, size)})["a"]
        # a GPU has counted it then
        assert result.stats.ms > 0
        followed.append(result.aligned is not None)
        outputs.append(result.output[1].shape[-2:])
    assert not any(followed[:12])
    assert counting.asked > 0
    moving = followed.index(True)
    assert 12 < moving < 12 + 14
    assert all(followed[moving:38])
    assert not any(followed[-8:])
    # twice: no flapping
    assert sum(a != b for a, b in pairwise(followed)) == 2
    assert outputs[moving] == session.window
    assert outputs[-1] == size
    stats = session.stats("a")
    assert stats.frames == len(followed) == session.stats().frames
    assert stats.reasons["the camera moves"] == stats.reasons["the camera rests"] == 1
    assert stats.moves > 0
    assert session.notes
    # the windows' memory has been given back
    assert window_state(session) is None
    assert states(session) == [frame_state(session)]


def test_auto_never_estimates_where_nothing_moves(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)
    session = fast.session(2, motion="auto")
    rng = np.random.default_rng(0)
    for n in range(40):
        quiet = view(40, 40)
        busy = view(40, 40)
        # an object that crosses the picture, and sensor noise
        busy[20:30, 2 * n % 70 : 2 * n % 70 + 8] = 255
        noisy = busy + rng.normal(0, 1.5, busy.shape)
        results = session.step({"a": quiet, "b": np.clip(noisy, 0, 255).astype(np.uint8)})
        assert all(result.aligned is None for result in results.values())
    assert counting.asked == 0
    assert window_state(session) is None


def test_auto_soon_gives_up_on_a_busy_still_picture(counting: type[Counting]) -> None:
    """Half of the picture flickers: looked at now and then, and never followed."""
    fast = compiled("torch", 0.04)
    session = fast.session(motion="auto")
    rng = np.random.default_rng(0)
    for _ in range(120):
        frame = view(40, 40)
        frame[:, 42:] = rng.integers(0, 255, (SIZE[0], 42, 3))
        assert session.step({"a": frame})["a"].aligned is None
    assert 0 < counting.asked < 30


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_grows_with_the_window_only(engine: str, counting: type[Counting]) -> None:
    """Nothing is kept twice of a followed stream; "auto" has both kinds while both are needed."""
    fast = compiled(engine, 0.04)
    still = fast.session(2, size=PAN_SIZE)
    still.step({"a": view(90, 90, PAN_SIZE)})
    for motion in ("features", "auto"):
        session = fast.session(2, motion=motion, size=PAN_SIZE)
        session.waits = True
        ratio = np.prod(session.window) / np.prod(PAN_SIZE)
        for n in range(20):
            session.step({"a": view(90, 60 + 5 * n, PAN_SIZE), "b": view(30, 40, PAN_SIZE)})
        assert session.followed == (["a"] if motion == "auto" else ["a", "b"])
        # all slots of both kinds: b has not moved
        wanted = ratio + (motion == "auto")
        assert wanted * still.state_bytes * 0.98 < session.state_bytes
        assert session.state_bytes <= 1.05 * wanted * still.state_bytes
        session.leave("a")
        alone = 1.0 if motion == "auto" else ratio
        assert session.state_bytes <= 1.05 * alone * still.state_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_of_a_followed_stream_begins_still(engine: str, counting: type[Counting]) -> None:
    size = (120, 160)
    session = compiled(engine, 0.04).session(2, motion="auto", size=size)
    session.waits = True
    places = path((150, 60), (0, 5), 30)
    for n, here in enumerate(places):
        if n == 24:
            assert session.followed == ["a"]
            session.reset("a")
        results = session.step({"a": view(*here, size), "b": view(10, 10, size)})
        if n == 24:
            assert results["a"].aligned is None
            assert results["a"].stats.reason == "reset"
    assert session.stats("b").reasons == {"first frame": 1}


# ------------------------------------------------------------------------- windows in the making


def pan(session: Session, first: int, count: int) -> list[torchdelta.Result]:
    """Show what a panning camera sees; it turns round before it reaches the world's end."""
    results = []
    for n in range(first, first + count):
        x = 5 * (n % 100) if n % 100 < 50 else 5 * (100 - n % 100)
        results.append(session.step({"a": view(150, x, PAN_SIZE)})["a"])
    return results


def auto_session(engine_at: Callable[[tuple[int, int]], Engine]) -> Session:
    return Session(engine_at(PAN_SIZE), 1, 0.04, Profile(), engine_at=engine_at, motion="auto")


def other_stride() -> Engine:
    """Give an engine of a network that moves by 8 pixels at a time."""
    layers = nn.Sequential(conv(3, 4, 3, 2), conv(4, 4, 3, 2), conv(4, 4, 3, 2)).eval()
    example = torch.zeros(1, 3, 124, 164, dtype=torch.uint8)
    return torchdelta.compile(layers, example, engine="torch", input_range=(0, 1)).session().engine


def test_auto_goes_on_while_the_window_is_made(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)
    may_end, begun = threading.Event(), threading.Event()
    asked = []

    def engine_at(size: tuple[int, int]) -> Engine:
        asked.append((size, threading.current_thread()))
        if size != PAN_SIZE:
            begun.set()
            assert may_end.wait(60)
        return fast._engine_at(size)

    session = auto_session(engine_at)
    early = pan(session, 0, 40)
    assert begun.wait(60)
    assert all(result.aligned is None for result in early)
    assert session.notes == []
    looked = counting.asked
    # nothing is estimated while nothing can come of it
    pan(session, 40, 10)
    assert counting.asked == looked > 0
    may_end.set()
    made = window_engine(session)
    assert made is not None
    made.result(60)
    late = pan(session, 50, 30)
    assert late[-1].aligned is not None
    assert session.stats("a").reasons["the camera moves"] == 1
    assert [size for size, _ in asked] == [PAN_SIZE, session.window]
    assert asked[0][1] is threading.main_thread() is not asked[1][1]
    assert len(session.notes) == 1
    assert "windows of" in session.notes[0]
    error = dense_on_published(fast, session, late[-1])
    assert error < 0.2


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("why", ["stride", "capture"])
def test_windows_that_cannot_be(counting: type[Counting], why: str, waits: bool) -> None:
    said = {"stride": r"moves by \(8, 8\) pixels on the window", "capture": "the net is baked"}[why]
    fast = compiled("torch", 0.04)
    asked = []

    def engine_at(size: tuple[int, int]) -> Engine:
        asked.append(size)
        if size == PAN_SIZE:
            return fast._engine_at(size)
        if why == "stride":
            return other_stride()
        raise CaptureError("the net is baked")

    with pytest.raises(CaptureError, match=said):
        Session(engine_at(PAN_SIZE), 1, 0.04, Profile(), engine_at=engine_at, motion="features")
    asked.clear()
    session = auto_session(engine_at)
    session.waits = waits
    results = pan(session, 0, 30)
    if not waits:
        made = window_engine(session)
        assert made is not None
        assert made.exception(60) is not None
    looked = counting.asked
    results += pan(session, 30, 30)
    assert all(result.aligned is None and result.error is None for result in results)
    assert asked == [PAN_SIZE, session.window]
    assert len(session.notes) == 1
    assert re.search(f"^cameras are not followed: .*{said}", session.notes[0])
    # nobody looks any more
    assert counting.asked == looked > 0


def test_networks_that_only_fit_the_frame(counting: type[Counting]) -> None:
    """A linear layer on a flattened map: no window can be larger than the frame."""
    torch.manual_seed(0)
    flat = nn.Sequential(conv(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 60 * 80, 5)).eval()
    example = torch.zeros(1, 3, *PAN_SIZE, dtype=torch.uint8)
    fast = torchdelta.compile(flat, example, engine="torch", tolerance=0.04, input_range=(0, 1))
    with pytest.raises(CaptureError):
        fast.session(motion="features")
    session = fast.session(motion="auto")
    session.waits = True
    assert all(result.aligned is None for result in pan(session, 0, 40))
    assert len(session.notes) == 1
    assert session.notes[0].startswith("cameras are not followed: ")


def test_a_defect_met_in_the_background_is_raised_once(counting: type[Counting]) -> None:
    fast = compiled("torch", 0.04)

    def engine_at(size: tuple[int, int]) -> Engine:
        if size == PAN_SIZE:
            return fast._engine_at(size)
        raise ZeroDivisionError("defect")

    session = auto_session(engine_at)
    session.waits = True
    with pytest.raises(ZeroDivisionError, match="defect"):
        pan(session, 0, 40)
    assert all(result.aligned is None for result in pan(session, 0, 40))


# -------------------------------------------------------------------------------- estimated motion


@pytest.mark.parametrize("motion", ["features", "codec", "translation"])
@pytest.mark.parametrize("engine", ENGINES)
def test_estimated_pan(engine: str, motion: Any) -> None:
    size = (120, 160)
    fast = compiled(engine, 0.04)
    session, still = fast.session(motion=motion, size=size), fast.session(size=size)
    # the decoder's vectors, of blocks of 16, lead to where the content was
    y, x = np.mgrid[8 : size[0] : 16, 8 : size[1] : 16].reshape(2, -1) - 0.5
    blocks = np.stack([x, y, *(np.full_like(x, n) for n in (5.75, 2.5, 256))], 1)
    for n in range(20):
        vectors = {"a": Vectors(blocks.astype(np.float32), size, kept=True) if n else None}
        middle = (40 + 5.75 * n + (size[1] - 1) / 2, 60 + 2.5 * n + (size[0] - 1) / 2)
        frame = cv2.getRectSubPix(world(), size[::-1], middle)
        result = session.step({"a": frame}, vectors=vectors)["a"]
        still.step({"a": frame})
        if n:
            moved = result.aligned.motion.homography
            assert np.allclose(moved, shift(5.75, 2.5), atol=0.4), moved
        assert result.stats.ms > 0
        assert result.aligned.motion.estimator == (motion if n else None)
        assert result.aligned.motion.fallback is None
    assert not any("vectors" in note for note in session.notes)
    stats = session.stats("a")
    assert stats.reasons == {"first frame": 1}
    assert stats.moves > 3
    assert (stats.mac_share or 1) < 0.7 * (still.stats("a").mac_share or 0)


SLOW_S = 0.03


class Slow(Features):
    """An estimator of known slowness."""

    def estimate(self, previous: Thumb, current: Thumb, vectors: Vectors | None = None) -> Any:
        time.sleep(SLOW_S)
        return super().estimate(previous, current, vectors)


@pytest.mark.parametrize("motion", ["features", "auto"])
def test_ms_holds_estimation_and_warp(monkeypatch: pytest.MonkeyPatch, motion: Any) -> None:
    monkeypatch.setitem(ESTIMATORS, motion, Slow)
    monkeypatch.setitem(ESTIMATORS, "auto", Slow)
    warp = Aligned.warp_and_mark

    def slow_warp(self: Aligned, frame: Any) -> Any:
        time.sleep(SLOW_S)
        return warp(self, frame)

    monkeypatch.setattr(Aligned, "warp_and_mark", slow_warp)
    session = compiled("torch", 0.04).session(2, motion=motion)
    session.waits = True
    for n in range(20):
        result = session.step({"a": view(90, 90 + 4 * n)})["a"]
        least_ms = 0.0
        if result.aligned is not None:
            least_ms = SLOW_S * 1e3 * (1 + (result.aligned.motion.estimator is not None))
        elif 5 <= n <= 8:
            # it is being looked at
            least_ms = SLOW_S * 1e3
        assert result.stats.ms >= least_ms, n
    assert result.aligned is not None


@pytest.mark.parametrize("frame_ms", [0.1, 1e6])
def test_auto_follows_where_that_saves_time(
    monkeypatch: pytest.MonkeyPatch, frame_ms: float
) -> None:
    monkeypatch.setitem(ESTIMATORS, "auto", Slow)

    def saves_time(self: Any, share: float) -> bool:
        assert 0 < share < 1
        # frames have been timed, and looks have
        assert min(self._frames_ms) > 0
        assert self._estimate_ms >= SLOW_S * 1e3
        self._frames_ms.extend([frame_ms] * watch.TIMED)
        return SAVES_TIME(self, share)

    monkeypatch.setattr(watch.Watch, "_saves_time", saves_time)
    session = compiled("torch", 0.04).session(2, motion="auto")
    session.waits = True
    followed = [
        session.step({"a": view(90, 90 + 4 * n)})["a"].aligned is not None for n in range(24)
    ]
    assert any(followed) == (frame_ms == 1e6)
    said = [note for note in session.notes if "is not followed: estimating" in note]
    assert len(said) == (frame_ms == 0.1)


def test_looks_and_first_frames_are_no_part_of_a_still_frames_time() -> None:
    """On a GPU the frames after the first may still compile kernels and capture a graph."""
    looks, seen = 0, watch.Watch(Slow(), 1.0, (0.0, 1.0))
    for ms in (5e4, 2e3, *[1.0] * 38):
        begin = time.perf_counter()
        seen.begin()
        if seen.suspicious:
            looks += 1
            assert not seen.look(torch.from_numpy(view(90, 90)), None)
            ms += (time.perf_counter() - begin) * 1e3
        stats = SimpleNamespace(first=False, changed_input=0.5, mac_share=0.5, ms=ms)
        seen.saw(SimpleNamespace(ready=True, stats=stats))  # type: ignore[arg-type]
        if len(seen._frames_ms) > 4:
            assert 1.0 <= median_low(seen._frames_ms) < SLOW_S * 1e3
    assert looks > 4


@pytest.mark.parametrize(("frame_ms", "looks"), [(QUICKEST_MS / 2, 0), (2.0, 2)])
def test_looks_are_few_where_following_cannot_pay(
    monkeypatch: pytest.MonkeyPatch, frame_ms: float, looks: int
) -> None:
    """Two estimates tell; the next look comes when frames have made up for them."""
    monkeypatch.setattr(watch, "QUICKEST_MS", QUICKEST_MS)
    monkeypatch.setattr(watch, "HOPELESS", HOPELESS)
    begun, seen = 0, watch.Watch(Slow(), 1.0, (0.0, 1.0))
    # an estimate takes SLOW_S and somewhat more
    pays_after = int(3 * SLOW_S * 1e3 / (watch.SPENT_LOOKING * frame_ms))
    for n in range(5 + pays_after):
        seen.begin()
        if seen.suspicious:
            begun += not seen.looking
            assert not seen.look(torch.from_numpy(view(90, 90 + 4 * (n % 40))), None)
        # ten times as much change after a while does not call for a look either
        stats = SimpleNamespace(
            first=n == 0, changed_input=0.09 if n < 20 else 0.9, mac_share=0.5,
            ms=frame_ms + seen._look_ms,
        )  # fmt: skip
        seen.saw(SimpleNamespace(ready=True, stats=stats))  # type: ignore[arg-type]
    assert begun == looks
    assert (seen.slow is not None) == (looks > 0)


def test_vectors_that_never_come_are_missed_once() -> None:
    session = compiled("torch", 0.04).session(2, motion="codec")
    for n in range(14):
        result = session.step({"a": view(90, 90 + 3 * n), "b": view(90, 90 + 2 * n)})["a"]
    assert result.aligned is not None
    assert result.aligned.motion.estimator == "features"
    assert result.aligned.motion.fallback == "the frame has no motion vectors"
    told = [note for note in session.notes if "no motion vectors" in note]
    assert ["'a'" in told[0], "'b'" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_float_frames_and_tensors(engine: str) -> None:
    fast = compiled(engine, 0.04)
    size = (120, 160)
    sessions = [fast.session(motion="features", size=size) for _ in range(3)]
    for here in path((60, 40), (2, 5), 8):
        frame = view(*here, size)
        as_tensor = torch.from_numpy(frame).permute(2, 0, 1).to(fast.device)
        kinds = (frame, as_tensor, as_tensor.float() / 255)
        results = [s.step({"a": kind})["a"] for s, kind in zip(sessions, kinds, strict=True)]
    poses = [result.aligned.pose for result in results if result.aligned is not None]
    # on a GPU the small picture is made there, and rounded otherwise
    assert np.allclose(poses[0], poses[1], atol=0.05 if engine in GPU_NAMES else 1e-8)
    assert np.allclose(poses[0], poses[2], atol=0.05 if engine in GPU_NAMES else 1e-2)
    if engine not in GPU_NAMES:
        assert torchdelta.relative_error(results[0].output, results[1].output) == 0
    bad = as_tensor.float() / 255
    bad[0, 0, 0] = float("nan")
    assert "NaN" in str(sessions[2].step({"a": bad})["a"].error)
