"""Sessions that follow cameras: cells, results in the frame, regions, estimated motion."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import torchdelta
from moving_cameras import (
    ENGINES,
    SIZE,
    Camera,
    Picture,
    compiled,
    path,
    placed,
    play,
    published,
    to_previous,
    view,
    world,
)
from support import GPU_NAMES, same_bits
from torchdelta import FrameError
from torchdelta.motion.homography import shift
from torchdelta.motion.vectors import Vectors
from torchdelta.ops.gate import input_gate
from torchdelta.runtime.inspect import frame_state
from torchdelta.videoframe import VideoFrame


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
        changed[cells] = session.stream("a").stats.changed_input
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
    stats = session.stream("a").stats
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
        vectors = Vectors(blocks.astype(np.float32), size, kept=True) if n else None
        middle = (40 + 5.75 * n + (size[1] - 1) / 2, 60 + 2.5 * n + (size[0] - 1) / 2)
        frame = cv2.getRectSubPix(world(), size[::-1], middle)
        result = session.step({"a": VideoFrame(frame, vectors=vectors)})["a"]
        still.step({"a": frame})
        if n:
            moved = result.aligned.motion.homography
            assert np.allclose(moved, shift(5.75, 2.5), atol=0.4), moved
        assert result.stats.ms > 0
        assert result.aligned.motion.estimator == (motion if n else None)
        assert result.aligned.motion.fallback is None
    assert not any("vectors" in note for note in session.notes)
    stats = session.stream("a").stats
    assert stats.reasons == {"first frame": 1}
    assert stats.moves > 3
    assert (stats.mac_share or 1) < 0.7 * (still.stream("a").stats.mac_share or 0)


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
