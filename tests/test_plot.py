"""`Result.plot`: what the network says where the task is known, else where it computed."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchdelta
from torchdelta import FrameError, ModelError, VideoFrame
from torchdelta.report import heat_map
from torchdelta.video import overlay

H, W = 64, 96
RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (H, W, 3), np.uint8)
CHANGED = FRAME.copy()
CHANGED[20:30, 40:60] ^= 255


class Pixels(nn.Module):
    """Scores of three classes per pixel: which colour is brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 6


class Brightness(nn.Module):
    """Scores of three classes of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[..., None, None] * 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def compiled(model: nn.Module, **options: Any) -> torchdelta.CompiledModel:
    options = {"tolerance": 0.0, "engine": "torch", "input_range": (0, 1)} | options
    channels = options.pop("channels", 3)
    example = torch.zeros(1, channels, H, W, dtype=torch.uint8)
    example[..., : H // 2, :] = 200
    return torchdelta.compile(model.eval(), example, **options)


@pytest.fixture(scope="module")
def plain() -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    return compiled(nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 2, 1)))


def test_without_a_task_it_is_where_the_network_computed(plain: torchdelta.CompiledModel) -> None:
    cam = plain.session(grain=1).stream("gate")
    first = cam(FRAME, record=True)
    grey = overlay.heat(FRAME, np.zeros((H, W), np.float32))
    noted = first.plot()
    assert (noted.dtype, noted.shape) == (np.uint8, (H, W, 3))
    # a note in its middle says why all was computed; the rest is the dimmed picture
    differs = (noted != grey).any(-1)
    assert 0 < differs.mean() < 0.1
    assert not differs[: H // 4].any()
    result = cam(CHANGED, record=True)
    heat = heat_map(plain.plan, result.active or {}, (H, W))
    assert np.array_equal(result.plot(), overlay.heat(CHANGED, heat))
    assert (result.plot()[25, 50] != grey[25, 50]).any()
    assert np.array_equal(result.plot()[0, 0], grey[0, 0])
    with pytest.raises(ValueError, match=r"no active set for .*record=True"):
        cam(FRAME).plot()


def test_of_a_followed_camera_it_lies_in_the_frame(plain: torchdelta.CompiledModel) -> None:
    cam = plain.session(motion="given", grain=1).stream("drone")
    cam(FRAME, record=True)
    moved = np.roll(CHANGED, (-2, -4), (0, 1))
    result = cam(moved, homography=[[1, 0, 4], [0, 1, 2], [0, 0, 1]], record=True)
    picture = result.plot()
    assert picture.shape == (H, W, 3)
    coloured = (picture.max(-1).astype(int) - picture.min(-1)) > 40
    # what changed in the world, where it lies in this frame, and the strips that are new
    assert coloured[18:28, 36:56].all()
    assert not coloured[40:55, 10:80].any()


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(CHANGED).permute(2, 0, 1),
        torch.from_numpy(CHANGED).permute(2, 0, 1)[None].float() / 255,
        CHANGED.astype(np.float32) / 255,
        VideoFrame(CHANGED, 0.5),
    ],
    ids=["tensor", "float tensor", "float", "videoframe"],
)
def test_frames_of_all_kinds_are_drawn_alike(plain: torchdelta.CompiledModel, given: Any) -> None:
    cams = [plain.session(grain=1, tolerance=0.02).stream("gate") for _ in range(2)]
    for cam in cams:
        cam(FRAME)
    picture, expected = cams[0](given, record=True).plot(), cams[1](CHANGED, record=True).plot()
    assert np.abs(picture.astype(int) - expected).max() <= 2


def test_grey_frames(plain: torchdelta.CompiledModel) -> None:
    fast = compiled(nn.Conv2d(1, 2, 3, 1, 1), channels=1)
    for frame in (FRAME[..., 0], FRAME[..., :1]):
        picture = fast.session().stream("gate")(frame, record=True).plot()
        assert picture.shape == (H, W, 3)
        assert np.array_equal(picture[0, :, 0], picture[0, :, 2])


def test_classes_are_named() -> None:
    fast = compiled(Brightness(), task="classify", labels=["red", "green", "blue"])
    frame = np.full((240, 320, 3), (10, 20, 220), np.uint8)
    (result,) = fast.run([frame])
    assert result.active is None
    scores = torch.tensor([10.0, 20.0, 220.0]) / 255 * 6
    best = [(n, float(scores.softmax(0)[i])) for n, i in (("blue", 2), ("green", 1), ("red", 0))]
    assert np.array_equal(result.plot(), overlay.labels(frame, best))
    assert not np.array_equal(result.plot(), frame)


def test_pixels_are_coloured_by_their_class() -> None:
    fast = compiled(Pixels(), task="segment")
    result = fast.session().stream("gate")(FRAME)
    assert np.array_equal(result.plot(), overlay.segmentation(FRAME, FRAME.argmax(-1)))
    assert fast.session().stream("gate")(FRAME, record=True).plot().shape == (H, W, 3)


def test_a_picture_is_shown_in_the_frame_s_values() -> None:
    """Range, mean, std and colour order of the input are undone."""
    fast = compiled(
        nn.Identity(), task="image", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), color="bgr"
    )
    result = fast.session().stream("gate")(FRAME)
    assert np.abs(result.plot().astype(int) - FRAME).max() <= 1


def test_no_picture_of_what_has_none(plain: torchdelta.CompiledModel) -> None:
    cam = plain.session().stream("gate")
    with pytest.raises(FrameError, match="frame is 63x96"):
        cam(FRAME[1:]).plot()
    result = cam(FRAME, record=True)
    copied = pickle.loads(pickle.dumps(result))
    assert copied.frame is None
    with pytest.raises(TypeError, match="pickled or copied"):
        copied.plot()
    assert pickle.loads(pickle.dumps(cam(VideoFrame(FRAME, 1.5)))).pts_s == 1.5


def test_a_task_must_fit_the_output() -> None:
    for task, needs in (("classify", "[1, classes]"), ("image", "[1, 1 or 3, H, W]")):
        fast = compiled(nn.Conv2d(3, 5, 3, 2, 1), task=task)
        said = f"task {task} needs an output of {needs}, this model gives [1, 5, 32, 48]"
        with pytest.raises(ModelError) as raised:
            fast.session().stream("gate")(FRAME).plot()
        assert said in str(raised.value)
    with pytest.raises(ValueError, match="task is 'detect', expected one of"):
        compiled(nn.Identity(), task="detect")
    with pytest.raises(ValueError, match="labels are names of classes: give task="):
        compiled(nn.Identity(), labels=["a"])
    with pytest.raises(ModelError, match="labels has 2 names, the network gives 3 classes"):
        compiled(Brightness(), task="classify", labels=["a", "b"]).session().stream("gate")(
            FRAME
        ).plot()
