"""Estimated motion on pictures of known motion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from motion_scenes import (
    ESTIMATORS,
    SIZE,
    START,
    WARPS,
    H,
    W,
    about_centre,
    noisy,
    off_px,
    scene,
    true_vectors,
    view,
)
from torchdelta.motion.codec import Codec
from torchdelta.motion.estimate import Motion
from torchdelta.motion.features import Features
from torchdelta.motion.fit import fit
from torchdelta.motion.homography import (
    shift,
    through,
)
from torchdelta.motion.thumb import Thumb
from torchdelta.motion.vectors import Vectors
from torchdelta.video.source import open_source

# of the frame's corners, pixels: sub-pixel at half the size, vectors are quarters
MOST_OFF_PX = {"features": 0.5, "codec": 0.6, "translation": 0.5}


def rough_vectors(
    motion: np.ndarray, still: Sequence[tuple[int, int, int, int]] = (), outliers: float = 0.3
) -> Vectors:
    """What a real encoder's blocks say: in places anything, and nothing moves under `still`.

    still: (x0, y0, x1, y1) of burnt-in pictures
    """
    vectors, rng = true_vectors(motion), np.random.default_rng(0)
    blocks = vectors.blocks
    wrong = rng.random(len(blocks)) < outliers
    blocks[wrong, 2:4] = rng.integers(-64, 64, (int(wrong.sum()), 2)) / 4
    blocks[~wrong, 2:4] += rng.integers(-1, 2, (int((~wrong).sum()), 2)) / 4
    for x0, y0, x1, y1 in still:
        x, y = blocks[:, 0], blocks[:, 1]
        under = (x > x0 - 8) & (x < x1 + 8) & (y > y0 - 8) & (y < y1 + 8)
        blocks[under, 2:4] = 0
    return vectors


def estimated(
    name: str, before: np.ndarray, after: np.ndarray, true: np.ndarray,
    still: Sequence[tuple[int, int, int, int]] = (),
) -> Motion:  # fmt: skip
    """Estimate a motion that can be found: nothing falls back."""
    vectors = rough_vectors(true, still)
    motion = ESTIMATORS[name]().estimate(Thumb.of(before), Thumb.of(after), vectors)
    assert motion.estimator in (None, name), motion
    assert motion.fallback is None, motion
    return motion


SHIFTS = {
    f"{dx:+g}{dy:+g}": shift(dx, dy)
    for dx, dy in [*itertools.product((-9, 0, 9), repeat=2), (2.25, 0.5), (-0.6, 3.7), (17, -12)]
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shifted", SHIFTS)
def test_shifts_in_all_directions(name: str, shifted: str) -> None:
    true = SHIFTS[shifted]
    before, after = noisy(view(START), 2, 0), noisy(view(START @ true), 2, 1)
    motion = estimated(name, before, after, true)
    assert motion.confidence >= 0.5, motion
    assert off_px(motion.homography, true) < MOST_OFF_PX[name]


@pytest.mark.parametrize("name", ["features", "codec"])
@pytest.mark.parametrize("warped", WARPS)
def test_homographies(name: str, warped: str) -> None:
    true = WARPS[warped]
    before, after = noisy(view(START), 2, 0), noisy(view(START @ true), 2, 1)
    motion = estimated(name, before, after, true)
    assert motion.confidence >= 0.5, motion
    assert off_px(motion.homography, true) < MOST_OFF_PX[name]


@pytest.mark.parametrize("size", [(120, 160), (540, 960), (384, 640), (301, 447)])
def test_other_sizes(size: tuple[int, int]) -> None:
    true = shift(3.4, -2.2) @ about_centre(0.7, 1.01, size)
    pose = shift(300, 300)
    motion = Features().estimate(Thumb.of(view(pose, size)), Thumb.of(view(pose @ true, size)))
    # a pixel of the small picture is up to two of the frame
    assert off_px(motion.homography, true, size) < 0.5 * max(1, size[1] / 480)


def with_objects(frame: np.ndarray, at: int, share: float) -> np.ndarray:
    """Put textured objects over a share of the picture, each at its own place."""
    frame = frame.copy()
    h, w = int(H * np.sqrt(share / 2)), int(W * np.sqrt(share / 2))
    for part, (y, x) in enumerate(
        [(10 + at * 6, 8 + at * 7), (H - h - 12 - at * 5, W - w - 70 + at * 4)]
    ):
        frame[y : y + h, x : x + w] = scene()[600 * part : 600 * part + h, 20 : 20 + w]
    return frame


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("true", [shift(5, -2), shift(0, 0)], ids=["pan", "still"])
def test_objects_over_40_percent(name: str, true: np.ndarray) -> None:
    before = with_objects(view(START), 0, 0.4)
    after = with_objects(view(START @ true), 1, 0.4)
    # vectors of blocks that the objects cover say how the objects move; some of the others err
    vectors = rough_vectors(true, outliers=0.1)
    for part, (y, x) in enumerate([(16, 15), (H - 107 - 17, W - 143 - 66)]):
        b = vectors.blocks
        on = (b[:, 0] > x) & (b[:, 0] < x + 143) & (b[:, 1] > y) & (b[:, 1] < y + 107)
        b[on, 2:4] = [(-7, -6), (-4, 5)][part]
    motion = ESTIMATORS[name]().estimate(Thumb.of(before), Thumb.of(after), vectors)
    assert motion.confidence < 0.5 or off_px(motion.homography, true) < 1.0, motion
    if name != "translation":
        assert motion.confidence >= 0.5, motion
    assert motion.fallback is None, motion


@pytest.mark.parametrize("name", ESTIMATORS)
def test_burnt_in_clock_and_logo_do_not_win(name: str) -> None:
    # smooth scene, sharp text: nearly all of the strongest corners are the text's
    def frame(pose: np.ndarray, second: int) -> np.ndarray:
        picture = cv2.GaussianBlur(view(pose), (0, 0), 3)
        clock = f"2024-05-17 12:34:{second}"
        cv2.putText(picture, clock, (8, 20), 0, 0.5, (255, 255, 255), 1)
        cv2.putText(picture, "CAM 7 NORTH", (200, 230), 0, 0.5, (255, 255, 255), 1)
        cv2.rectangle(picture, (270, 6), (312, 34), (255, 0, 0), -1)
        return picture

    true = shift(4, 1.5)
    burnt_in = [(8, 8, 180, 24), (200, 218, 310, 234), (270, 6, 312, 34)]
    motion = estimated(name, frame(START, 58), frame(START @ true, 59), true, burnt_in)
    assert motion.confidence >= 0.5, motion
    assert off_px(motion.homography, true) < 1.0


BLANKS = {
    "black": np.zeros((H, W, 3), np.uint8),
    "grey": np.full((H, W, 3), 127, np.uint8),
    "ramp": np.repeat(np.linspace(60, 190, W, dtype=np.uint8)[None, :, None], H, 0).repeat(3, 2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("blank", BLANKS)
def test_blank_frames_give_low_confidence(name: str, blank: str) -> None:
    for deviation in (0, 1.5, 3, 6):
        frames = [Thumb.of(noisy(BLANKS[blank], deviation, seed)) for seed in (0, 1)]
        # of noise an encoder says that it stays where it is, or anything
        said = true_vectors(np.eye(3)) if deviation < 3 else rough_vectors(np.eye(3), outliers=1)
        motion = ESTIMATORS[name]().estimate(*frames, said)
        # a ramp has no corners, and yet may tell that it stands still
        assert motion.confidence < 0.5 or blank == "ramp"
        off = off_px(motion.homography, np.eye(3))
        # more noise than texture is counted against may shift what is found, but not by much
        assert off < 0.5 if deviation <= 1.5 else motion.confidence < 0.5 or off < 1
        assert motion.reason or motion.confidence >= 0.5


@pytest.mark.parametrize("name", ESTIMATORS)
def test_another_scene_is_not_garbage_accepted(name: str) -> None:
    before, after = Thumb.of(view(START)), Thumb.of(view(shift(60, 40) @ about_centre(90)))
    for said in (true_vectors(shift(5, -3)), rough_vectors(np.eye(3), outliers=1)):
        motion = ESTIMATORS[name]().estimate(before, after, said)
        assert motion.confidence < 0.5, motion
        assert (motion.fallback is not None) == (name == "codec")


def test_wrong_vectors_fall_back_to_features() -> None:
    true = shift(6, 2)
    before, after = view(START), view(START @ true)
    wrong = true_vectors(shift(-8, 9))
    codec = Codec()
    for vectors, said in ((wrong, "pictures differ"), (None, "no motion vectors")):
        motion = codec.estimate(Thumb.of(before), Thumb.of(after), vectors)
        assert motion.confidence >= 0.5
        assert off_px(motion.homography, true) < 0.5
        assert motion.estimator == "features"
        assert motion.fallback is not None
        assert said in motion.fallback
    motion = codec.estimate(Thumb.of(before), Thumb.of(after), true_vectors(true))
    assert (motion.estimator, motion.fallback) == ("codec", None)


ENCODED = {
    "pan": shift(6, -4),
    "sub-pixel": shift(-5.5, 2.25),
    "roll-zoom-pan": shift(3, 7) @ about_centre(1, 0.985),
}


@pytest.mark.parametrize("encoded", ENCODED)
def test_vectors_that_a_decoder_gives(encoded: str, tmp_path: Path) -> None:
    """Sign, unit and places of the vectors of an H.264 file of known motion."""
    true, path = ENCODED[encoded], tmp_path / "pan.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        stream.options = {"g": "100", "bf": "0", "refs": "1", "crf": "16"}
        for n in range(3):
            picture = view(START @ np.linalg.matrix_power(true, n))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    codec = Codec()
    with open_source(path, vectors=True) as source:
        first = next(source)
        assert first.vectors is None
        previous = Thumb.of(first.picture)
        for frame in source:
            vectors, current = frame.vectors, Thumb.of(frame.picture)
            assert vectors is not None
            assert vectors.size == SIZE
            at = vectors.blocks[:, :2].astype(np.float64)
            # blocks of whole pixels: their middles lie between two centres
            assert ((at + 0.5) % 2 == 0).all()
            assert vectors.blocks[:, 4].sum() > 0.9 * H * W
            off = np.linalg.norm(vectors.blocks[:, 2:4] - (through(true, at) - at), axis=1)
            assert np.median(off) < 0.2
            assert (off < 0.5).mean() > 0.9
            motion = codec.estimate(previous, current, vectors)
            assert motion.fallback is None
            assert off_px(motion.homography, true) < 0.3
            previous = current


def test_vectors_of_a_frame_before_the_last_one() -> None:
    # B-frames: the vectors lead to the last frame that was kept, two frames before
    codec, step = Codec(), shift(3, 1.5)
    thumbs = [Thumb.of(view(START @ np.linalg.matrix_power(step, n))) for n in range(4)]
    both = step @ step
    kept = true_vectors(step)
    codec.estimate(thumbs[0], thumbs[1], kept)
    first_b = true_vectors(step)
    codec.estimate(thumbs[1], thumbs[2], Vectors(first_b.blocks, SIZE, kept=False))
    motion = codec.estimate(thumbs[2], thumbs[3], Vectors(true_vectors(both).blocks, SIZE, False))
    assert motion.confidence >= 0.5
    assert off_px(motion.homography, step) < 0.6


def test_what_did_not_fit_is_left_out_for_some_frames() -> None:
    """The cells of an object are not looked at in the next frames, and come back."""
    estimator, step = Features(), shift(4, 2)
    # of the cells of 24 pixels, counted from the picture's edge, rows 3 to 5 and columns 4 to 7
    y, x, h, w = 72, 96 + 4, 72, 96

    def frame(n: int, there: bool) -> Thumb:
        picture = view(START @ np.linalg.matrix_power(step, n)).copy()
        if there:
            picture[y + 3 * n : y + 3 * n + h, x - 5 * n : x - 5 * n + w] = scene()[:h, :w]
        return Thumb.of(picture)

    def asked(grey: np.ndarray) -> int:
        points, _ = estimator._corners(grey)
        inside = (points > (x, y)).all(1) & (points < (x + w - 8, y + h - 8)).all(1)
        return int(inside.sum())

    thumbs = [frame(n, there=n < 2) for n in range(8)]
    free = asked(thumbs[2].fine)
    assert free >= 6
    for n in range(7):
        motion = estimator.estimate(thumbs[n], thumbs[n + 1])
        if n != 1:
            # (with the second frame's object the third shows the world in its place)
            assert off_px(motion.homography, step) < 0.5, n
        left = asked(thumbs[n + 1].fine)
        if n == 0:
            assert left <= free // 3
    assert left >= free - 1
    # where most of the corners disagree, nobody knows which of them are right
    estimator.reset()
    estimator._corners(thumbs[0].fine)
    estimator._remember(np.arange(10), np.arange(10) < 4)
    assert estimator._unfit is not None
    assert not estimator._unfit.any()


def test_few_points_carry_a_simple_model_only() -> None:
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 200, (40, 2)).astype(np.float32)
    true = shift(3, 2) @ about_centre(2, 1.02)
    end = through(true, start.astype(np.float64)).astype(np.float32)
    for count, exact in ((40, True), (14, True), (8, False)):
        found = fit(start[:count], end[:count], 2.0 if not exact else 0.5, SIZE)
        if found is not None:
            assert off_px(found[0], true) < (0.5 if exact else 12)
    assert fit(start[:3], end[:3], 1.0, SIZE) is None


def test_floats_tensors_and_grey_frames_look_alike() -> None:
    frame = view(START)
    fine = Thumb.of(frame).fine.astype(int)
    for other in (frame.astype(np.float32) / 255, torch.from_numpy(frame.copy())):
        assert np.abs(Thumb.of(other).fine.astype(int) - fine).max() <= 1
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    assert np.array_equal(Thumb.of(grey).fine, Thumb.of(frame).fine)


@pytest.mark.parametrize("size", [SIZE, (540, 960), (301, 447)])
def test_thumbs_on_cuda(cuda: torch.device, size: tuple[int, int]) -> None:
    """The small picture is made where the frame lies, and is the same but for rounding."""
    frame = view(shift(300, 300), size)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    for picture in (frame, grey, frame.astype(np.float32) / 255):
        here, there = (Thumb.of(torch.from_numpy(picture.copy()).to(at)) for at in ("cpu", cuda))
        assert (here.size, here.fine.shape) == (there.size, there.fine.shape)
        # rounded before it is averaged down there, behind it here
        off = np.abs(here.fine.astype(int) - there.fine)
        assert off.max() <= 1
        assert off.mean() < 0.5
    broken = torch.full((*size, 3), float("nan"), device=cuda)
    assert (Thumb.of(broken).fine == 127).all()


def test_features_on_cuda(cuda: torch.device) -> None:
    true = shift(5.5, -3.2) @ about_centre(1, 1.01)
    thumbs = [
        Thumb.of(torch.from_numpy(view(pose).copy()).to(cuda)) for pose in (START, START @ true)
    ]
    assert off_px(Features().estimate(*thumbs).homography, true) < 0.5
