"""Homographies, the warp into a window, and the way back to the frame."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from motion_scenes import BAD, SIZE, START, WARPS, H, W, about_centre, sampled, scene, turned, view
from support import threads
from torchdelta import native_lib
from torchdelta.errors import FrameError
from torchdelta.motion.align import inside_share
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.fit import fit_near
from torchdelta.motion.homography import (
    check_homography,
    corners,
    inverse,
    resized,
    resizing,
    scale_of,
    scaled,
    shift,
    stretch,
    through,
    turn_degrees,
    whole_shift,
)
from torchdelta.motion.warp import Scratch, to_window, valid_mask, warp, warp_and_mark


def test_geometry() -> None:
    turned = shift(7, 3) @ about_centre(4, 1.05)
    assert turn_degrees(turned, SIZE) == pytest.approx(4)
    assert scale_of(turned, SIZE) == pytest.approx(1.05)
    assert stretch(turned, SIZE) == pytest.approx((1.05, 1.05))
    assert whole_shift(shift(-3, 8)) == (-3, 8)
    assert whole_shift(shift(-3, 8.01)) is None
    half = resized(turned, SIZE, (120, 160))
    at = np.array([[11.0, 17.0]])
    there = through(resizing(SIZE, (120, 160)), through(turned, at))
    assert through(half, through(resizing(SIZE, (120, 160)), at)) == pytest.approx(there)
    assert inside_share(corners(SIZE), SIZE) == pytest.approx(1)
    assert inside_share(corners((101, 101)) + np.array([50, 0]), (101, 101)) == pytest.approx(0.505)


@pytest.mark.parametrize("bad", BAD)
def test_bad_homographies_are_refused(bad: str) -> None:
    given, said = BAD[bad]
    with pytest.raises(FrameError, match=said):
        check_homography(given, SIZE)


def test_mask_is_exact_to_the_pixel() -> None:
    rng = np.random.default_rng(3)
    window = (90, 110)
    y, x = np.mgrid[: window[0], : window[1]]
    at = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
    for _ in range(50):
        pose = shift(*rng.uniform(-30, 60, 2)) @ about_centre(
            rng.uniform(-8, 8), rng.uniform(0.85, 1.2), (64, 80)
        )
        pose[2, :2] = rng.uniform(-3e-4, 3e-4, 2)
        there = through(inverse(pose), at).round(6)
        expected = ((there >= 0) & (there <= (79, 63))).all(1).reshape(window)
        assert np.array_equal(valid_mask(pose, (64, 80), window), expected)
    assert valid_mask(shift(5, 7), (64, 80), window).sum() == 64 * 80


POSES = {
    "whole": shift(9, 14),
    "part": shift(9.37, 14.81),
    "all": shift(12.3, 8.8) @ about_centre(5, 1.07) @ scaled(WARPS["perspective"]),
}


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("pose", POSES)
def test_opencv_and_torch_sample_alike(pose: str, kind: str, channels: int) -> None:
    frame = np.concatenate([view(START)] * 2, 2)[:, :, :channels].astype(kind)
    window = (288, 352)
    from torchdelta.motion.warp import _warp_opencv, _warp_torch

    by_opencv = _warp_opencv(np.ascontiguousarray(frame), POSES[pose], window, Scratch())
    by_torch = _warp_torch(torch.from_numpy(frame.copy()), POSES[pose], window).numpy()
    mask = valid_mask(POSES[pose], SIZE, window)
    assert by_opencv.shape == by_torch.shape == (*window, channels)
    assert by_opencv.dtype == by_torch.dtype == frame.dtype
    difference = np.abs(by_opencv.astype(float) - by_torch)[mask]
    # rounding of coordinates to 32 bits, then of the result to whole levels
    assert difference.max() <= 1
    assert difference.mean() < 0.05
    public = warp(torch.from_numpy(frame.copy()), POSES[pose], window)
    assert np.abs(public.numpy().astype(float) - by_opencv)[mask].max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("pose", POSES)
def test_warp_on_cuda(cuda: torch.device, pose: str, kind: str, channels: int) -> None:
    """A frame on a GPU is sampled there, as on the CPU; beyond the frame it is 0."""
    frame = np.concatenate([view(START)] * 2, 2)[:, :, :channels].astype(kind)
    window = (288, 352)
    mask = valid_mask(POSES[pose], SIZE, window)
    there = warp(torch.from_numpy(frame.copy()).to(cuda), POSES[pose], window)
    assert there.device.type == "cuda"
    assert (there.shape, there.dtype) == ((*window, channels), getattr(torch, kind))
    found = there.cpu().numpy().astype(float)
    here = warp(frame.astype("float32"), POSES[pose], window)
    off = np.abs(found - here)[mask]
    # the eleventh bit of 255 in half precision, whole levels
    assert off.max() <= (0 if pose == "whole" and kind != "float16" else 1)
    assert off.mean() < (0.05 if kind == "float32" else 0.3)
    # a pixel beyond it blends with 0
    beyond = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert beyond.any()
    assert not found[beyond].any()


def test_maps_on_cuda_come_back(cuda: torch.device) -> None:
    at, values = aligned_somewhere(), torch.rand(2, 72, 88)
    back = at.to_frame_map(values.to(cuda), fill=-1)
    assert back.device.type == "cuda"
    assert torch.allclose(back.cpu(), at.to_frame_map(values, fill=-1), atol=1e-4)
    labels = (values > 0.5).to(cuda)
    assert (at.to_frame_map(labels).cpu() != at.to_frame_map(labels.cpu())).float().mean() < 1e-3


def around(size: tuple[int, int], motion: np.ndarray) -> np.ndarray:
    """A window's map: a motion about the frame's middle, in a window a little larger."""
    middle = shift((size[1] - 1) / 2, (size[0] - 1) / 2)
    return scaled(shift(5, 3) @ middle @ motion @ np.linalg.inv(middle))


NATIVE_MAPS = {
    "identity": np.eye(3),
    "whole": shift(9, -4),
    "part": shift(0.37, 0.81),
    "beyond": shift(1e4, 0),
    "closer": turned(0, 1.12),
    "farther": turned(0, 0.45),
    "roll": turned(7, 1.03),
    "quarter": turned(90, 1),
    "upside-down": turned(180, 1),
    "mirrored": np.diag([-1.0, 1, 1]),
    "perspective": scaled(turned(-3, 1.02) @ np.array([[1, 0, 0], [0, 1, 0], [4e-4, -3e-4, 1]])),
    "horizon": np.array([[1, 0, 0], [0, 1, 0], [0.02, 0.01, 1]]),
}
NATIVE_SIZES = [(2, 2), (3, 17), (7, 5), (63, 16), (130, 131), (240, 320)]


@pytest.mark.skipif(not native_lib.library_path(), reason="the native library was not built")
@pytest.mark.parametrize("mapped", NATIVE_MAPS)
def test_native_and_opencv_sample_alike(mapped: str) -> None:
    from torchdelta.motion.warp import _warp_opencv, mask_by_rows, warp_native

    rng, compared = np.random.default_rng(0), 0
    for size in NATIVE_SIZES:
        window = (size[0] + 9, size[1] + 14)
        there = around(size, NATIVE_MAPS[mapped])
        # as sharp as can be: each weight counts; with rows that do not follow each other at once
        noise = rng.integers(0, 256, (size[0], size[1] + 3, 3)).astype(np.uint8)[:, : size[1]]
        mask = mask_by_rows(there, size, window)
        assert np.array_equal(valid_mask(there, size, window), mask)
        expected = _warp_opencv(np.ascontiguousarray(noise), there, window, Scratch())
        exact = sampled(noise, there, window)
        found = {isa: warp_native(noise, there, window, isa) for isa in native_lib.isas()}
        compared += int(mask.sum())
        for isa, picture in found.items():
            difference = np.abs(picture.astype(int) - expected)[mask]
            # both round to whole levels
            assert not difference.size or difference.max() <= 1, (isa, size)
            assert not difference.size or np.abs(picture - exact)[mask].max() < 0.55
            assert not picture[~mask].any()
            assert np.array_equal(picture, next(iter(found.values()))), (isa, size)
    assert compared > 1000 or mapped == "beyond"


@pytest.mark.skipif(not native_lib.library_path(), reason="the native library was not built")
def test_native_warp_on_two_threads_and_without_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame, there, window = view(START), around(SIZE, turned(3, 1.01)), (256, 352)
    one = warp(frame, there, window)
    with threads(2):
        assert np.array_equal(warp(frame, there, window), one)
    turned_tensor = torch.from_numpy(frame.copy()).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert np.array_equal(warp(turned_tensor, there, window).numpy(), one)
    mask = valid_mask(there, SIZE, window)
    monkeypatch.setattr("torchdelta.motion.warp._native", lambda: False)
    other = warp(frame, there, window)
    assert not np.array_equal(other, one)
    assert np.abs(other.astype(int) - one)[mask].max() <= 1
    assert np.array_equal(valid_mask(there, SIZE, window), mask)


@pytest.mark.parametrize("mapped", ["turn", "whole shift"])
@pytest.mark.parametrize("kind", ["bytes", "floats", "grey", "tensor"])
def test_warp_and_mask_at_once(mapped: str, kind: str) -> None:
    window = (256, 352)
    there = around(SIZE, turned(3, 1.01)) if mapped == "turn" else shift(11, -7)
    frame: Any = view(START)
    frame = {
        "bytes": frame,
        "floats": frame.astype(np.float32) / 255,
        "grey": np.ascontiguousarray(frame[:, :, :1]),
        "tensor": torch.from_numpy(frame.copy()),
    }[kind]
    picture, mask = warp_and_mark(frame, there, window)
    assert type(picture) is type(frame)
    assert np.array_equal(picture, warp(frame, there, window))
    assert np.array_equal(mask, valid_mask(there, SIZE, window))
    assert mask.any()
    assert not mask.all()


def test_a_map_is_inverted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        there = rng.normal(size=(3, 3))
        np.testing.assert_allclose(inverse(there) @ there, np.eye(3), atol=1e-9)
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        inverse(np.outer([1.0, 2, 3], [4.0, 5, 6]))


def test_a_fit_from_what_is_known_finds_the_map() -> None:
    """With noise, and with a third of the points elsewhere; the shift need not be known."""
    rng, size = np.random.default_rng(1), (480, 640)
    there = shift(9, -4) @ around(size, turned(2, 1.03))
    there[2, :2] = 2e-5, -1e-5
    start = (rng.random((300, 2)) * size[::-1]).astype(np.float32)
    end = through(there, start.astype(np.float64)) + rng.normal(0, 0.1, (300, 2))
    end[:100] += rng.uniform(20, 60, (100, 2))
    near = around(size, turned(2, 1.03))
    found = fit_near(start, end.astype(np.float32), 1.0, size, near)
    assert found is not None
    homography, agree = found
    assert not agree[:100].any()
    assert agree[100:].mean() > 0.98
    at = corners(size)
    assert np.abs(through(homography, at) - through(there, at)).max() < 0.5
    # with the word of many points against it a map does not tilt
    upright = fit_near(start, end.astype(np.float32), 1.0, size, near, upright=1e9)
    assert upright is None or np.abs(upright[0][2, :2]).max() < 1e-6
    assert fit_near(start[:20], end[:20].astype(np.float32), 1.0, size, near) is None


@pytest.mark.skipif(not native_lib.library_path(), reason="the native library was not built")
def test_native_warp_reads_nothing_beyond_the_frame() -> None:
    """The frame ends where a page ends, and the next one may not be read."""
    page = mmap.PAGESIZE
    h, w = 32, 64
    pages = -(-h * w * 3 // page) + 1
    memory = mmap.mmap(-1, pages * page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(whole.ctypes.data + (pages - 1) * page)
    assert libc.mprotect(guard, ctypes.c_size_t(page), 0) == 0
    end = (pages - 1) * page
    frame = whole[end - h * w * 3 : end].reshape(h, w, 3)
    frame[:] = scene()[:h, :w]
    for motion in NATIVE_MAPS.values():
        there = around((h, w), motion)
        expected = warp(frame.copy(), there, (40, 80))
        assert np.array_equal(warp(frame, there, (40, 80)), expected)
    assert libc.mprotect(guard, ctypes.c_size_t(page), 3) == 0


def test_whole_shifts_copy_pixels() -> None:
    frame = view(START)
    for kind in (frame, torch.from_numpy(frame.copy())):
        placed = warp(kind, shift(16, 8), (288, 352))
        assert np.array_equal(np.asarray(placed)[8 : 8 + H, 16 : 16 + W], frame)
        beyond = np.asarray(warp(kind, shift(-16, 200), (288, 352)))
        assert np.array_equal(beyond[200:, : W - 16], frame[:88, 16:])
        assert not beyond[:200].any()


def aligned_somewhere() -> Aligned:
    pose = shift(43.3, 71.2) @ about_centre(3, 1.04)
    return Aligned(SIZE, (288, 352), pose, origin=(64, 32))


def test_points_and_boxes_come_back() -> None:
    at = aligned_somewhere()
    points = np.array([[[5.0, 7.0], [200.5, 100.25]]])
    there = through(to_window(at.pose, at.origin), points[0])[None]
    assert at.to_frame_points(there) == pytest.approx(points)
    # pixel centres of a map at stride 8
    assert at.to_frame_points((there + 0.5) / 8 - 0.5, stride=8) == pytest.approx(points)
    assert at.to_frame_points(torch.tensor(there)) == pytest.approx(points)
    turned = aligned_somewhere()
    box = turned.to_frame_boxes([[100.0, 80.0, 140.0, 160.0]])[0]
    # neither its size nor its middle is another one, but for the scale
    assert box[2] - box[0] == pytest.approx(40 / 1.04, rel=0.01)
    assert box[3] - box[1] == pytest.approx(80 / 1.04, rel=0.01)
    middle = turned.to_frame_points([[120.0, 120.0]])[0]
    assert [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] == pytest.approx(middle)
    with pytest.raises(ValueError, match="expected"):
        at.to_frame_points([[1, 2, 3]])


def test_maps_come_back() -> None:
    at = aligned_somewhere()
    frame = cv2.GaussianBlur(view(START), (0, 0), 2)
    placed = at.warp(frame)
    back = at.to_frame_map(torch.from_numpy(placed).permute(2, 0, 1).float())
    inside = slice(30, H - 30), slice(30, W - 30)
    assert np.abs(back.permute(1, 2, 0).numpy() - frame)[inside].mean() < 1.5
    # whole numbers stay whole, at a stride of the network's output and of the result
    labels = torch.arange(36 * 44).reshape(36, 44)
    found = at.to_frame_map(labels, stride=4, fill=-1)
    assert found.shape == (60, 80)
    assert found.dtype == torch.int64
    point = at.to_frame_points([[20.0, 18.0]], stride=8)[0]
    x, y = ((point + 0.5) / 4 - 0.5).round().astype(int)
    assert found[y, x] == labels[18, 20]
    assert at.to_frame_map(labels.numpy() > 0).dtype == np.bool_


def test_a_static_frame_comes_back_as_it_is() -> None:
    at = Aligned(SIZE, SIZE)
    assert at.mask().all()
    values = torch.rand(2, H, W)
    assert torch.allclose(at.to_frame_map(values), values, atol=1e-4)
    assert at.to_frame_points([[3.0, 4.0]]).tolist() == [[3.0, 4.0]]
