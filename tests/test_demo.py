"""The demo's scene is what its methods say it is, and its network knows it."""

import io
import json
import zlib

import av
import cv2
import numpy as np
import pytest
import torch
from torch import nn

from support import threads
from torchdelta.console import PlainConsole
from torchdelta.demo import DEMO_SEED, TRAIN_SEEDS
from torchdelta.demo.net import WEIGHTS_PATH, DemoNet, load_demo_net, normalise
from torchdelta.demo.run import run_demo
from torchdelta.demo.scene import CLASSES, Scene
from torchdelta.demo.score import Agreement
from torchdelta.errors import FrameError, ModelError, SinkError
from torchdelta.video.board import Board

SMALL = (96, 144)


@pytest.fixture(autouse=True)
def _one_thread():
    with threads(1):
        yield


@pytest.mark.parametrize("pan", [False, True])
def test_frames_depend_on_seed_and_number_alone(pan):
    forward, backward = Scene(SMALL, 3, pan=pan), Scene(SMALL, 3, pan=pan)
    numbers = [0, 1, 17, 4321]
    first = {i: (forward.frame(i), forward.mask(i)) for i in numbers}
    for i in reversed(numbers):
        np.testing.assert_array_equal(backward.frame(i), first[i][0])
        np.testing.assert_array_equal(backward.mask(i), first[i][1])
    assert not np.array_equal(Scene(SMALL, 4, pan=pan).frame(0), first[0][0])


def test_frames_are_the_same_on_every_machine():
    still, moving = Scene(SMALL, DEMO_SEED), Scene(SMALL, DEMO_SEED, pan=True)
    assert zlib.crc32(still.frame(50).tobytes()) == 3558347484
    assert zlib.crc32(moving.frame(50).tobytes()) == 1865181568
    assert zlib.crc32(moving.mask(50).tobytes()) == 4009906045


@pytest.mark.parametrize("size", [(32, 32), (33, 130), (101, 57)])
@pytest.mark.parametrize("pan", [False, True])
def test_any_size(size, pan):
    scene = Scene(size, 1, pan=pan)
    for i in (0, 99):
        assert scene.frame(i).shape == (*size, 3)
        assert scene.frame(i).dtype == scene.mask(i).dtype == np.uint8
        assert scene.mask(i).shape == size


@pytest.mark.parametrize(
    "arguments", [{"size": (31, 64)}, {"objects": -1}, {"noise": -1.0}, {"seed": -1}]
)
def test_impossible_scenes_are_refused(arguments):
    with pytest.raises(FrameError, match="32x32"):
        Scene(**arguments)


@pytest.mark.parametrize("pan", [False, True])
def test_mask_agrees_with_what_is_drawn(pan):
    scene = Scene((160, 240), 5, noise=0, pan=pan)
    for i in (0, 30, 77):
        mask = (scene.mask(i) > 0).astype(np.uint8)
        drawn = np.abs(scene.frame(i).astype(int) - scene.backdrop(i)).max(2) > 1
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
        # The shadow reaches 2 pixels down here, the soft edge 1, also from beyond the border.
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        assert inside.sum() > 200
        assert drawn[inside].mean() > 0.97
        assert not drawn[4:-4, 4:-4][~near[4:-4, 4:-4]].any()


def test_things_cover_a_few_percent_and_every_class_occurs():
    for seed in range(4):
        masks = np.stack([Scene((160, 240), seed).mask(i) for i in range(0, 400, 40)])
        assert 0.03 <= (masks > 0).mean() <= 0.09
        assert set(np.unique(masks)) == set(range(len(CLASSES)))


def test_noise_is_small_normal_and_new_in_every_frame():
    noisy, clean = Scene(SMALL, 2), Scene(SMALL, 2, noise=0)
    grains = [noisy.frame(i).astype(int) - clean.frame(i) for i in (0, 1)]
    for grain in grains:
        assert abs(grain.mean()) < 0.05
        assert 1.9 < grain.std() < 2.1
    assert abs(np.corrcoef(grains[0].ravel(), grains[1].ravel())[0, 1]) < 0.02


def test_things_move_and_rest_at_times():
    scene = Scene(SMALL, DEMO_SEED, noise=0)
    moved = [not np.array_equal(scene.frame(i), scene.frame(i + 1)) for i in range(120)]
    assert 90 <= sum(moved) <= 110


def test_pan_homography_maps_points_right():
    scene = Scene((120, 180), 4, objects=0, noise=0, pan=True)
    np.testing.assert_array_equal(scene.homography(0), np.eye(3))
    travelled = 0.0
    for i in (1, 40, 200):
        matrix = scene.homography(i)
        before, now = scene.frame(i - 1), scene.frame(i)
        # What the matrix says about this frame's pixels, looked up in the frame before.
        warped = cv2.warpPerspective(
            before, matrix, (180, 120), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        inner = np.s_[8:-8, 8:-8]
        error = np.abs(warped[inner].astype(int) - now[inner]).mean()
        unmoved = np.abs(before[inner].astype(int) - now[inner]).mean()
        travelled += float(np.hypot(matrix[0, 2], matrix[1, 2]))
        assert error < 0.6 * unmoved
    assert travelled > 0.5
    assert np.array_equal(Scene((120, 180), 4).homography(9), np.eye(3))


def test_weights_are_small_and_trained_on_other_seeds():
    assert WEIGHTS_PATH.stat().st_size <= 1_000_000
    figures = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert figures["train_seeds"][0] == TRAIN_SEEDS > DEMO_SEED
    assert figures["weights_bytes"] == WEIGHTS_PATH.stat().st_size
    assert figures["evaluation"][0]["mean_iou"] >= 0.9


@pytest.mark.parametrize("seed", [DEMO_SEED, 77])
def test_network_knows_scenes_that_training_never_saw(seed):
    net, scene, agreement = load_demo_net(), Scene((320, 480), seed), Agreement(len(CLASSES))
    for i in range(0, 120, 30):
        with torch.no_grad():
            logits = net(normalise(torch.from_numpy(scene.frame(i))[None]))
        assert logits.shape == (1, len(CLASSES), 320, 480)
        agreement.add(scene.mask(i), logits.argmax(1)[0].numpy())
    assert agreement.mean_iou() >= 0.8


def test_network_is_ready_to_run():
    net = load_demo_net()
    assert not net.training
    assert all(p.dtype == torch.float32 for p in net.parameters())
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_var is not None
        assert norm.running_var.min() > 1e-3
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 45, 70)).shape == (2, len(CLASSES), 45, 70)


def test_damaged_weights_are_reported(monkeypatch, tmp_path):
    damaged = tmp_path / "demo_net.pt"
    damaged.write_bytes(WEIGHTS_PATH.read_bytes()[:1000])
    monkeypatch.setattr("torchdelta.demo.net.WEIGHTS_PATH", damaged)
    with pytest.raises(ModelError, match="cannot be read"):
        load_demo_net()
    torch.save(DemoNet(widths=(8, 8, 8, 8)).state_dict(), damaged)
    with pytest.raises(ModelError, match="cannot be read"):
        load_demo_net()


def test_agreement_counts_pixels():
    agreement = Agreement(3)
    agreement.add(np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 1]]))
    iou = agreement.iou()
    assert iou[:2] == [0.5, 2 / 3]
    assert np.isnan(iou[2])
    assert agreement.mean_iou() == 2 / 3


@pytest.mark.parametrize("pan", [False, True])
def test_demo_runs(tmp_path, pan):
    text = io.StringIO()
    report = run_demo(
        tmp_path / "new", 4, size=SMALL, tolerance=0.0, pan=pan, console=PlainConsole(file=text)
    )
    with av.open(str(tmp_path / "new" / "demo.mp4")) as video:
        shapes = [(f.height, f.width) for f in video.decode(video=0)]
    assert shapes == [tuple(side + side % 2 for side in Board(SMALL, 2).size)] * 4
    assert 0 < report.mac_share <= 1
    assert 0 < report.changed_input <= 1
    assert report.delta.iou == pytest.approx(report.dense.iou, abs=1e-3)
    for words in ("ms per frame", "MAC share", "IoU, mean over things", "demo.mp4"):
        assert words in text.getvalue()


def test_delta_finds_what_dense_finds_at_the_default_tolerance(tmp_path):
    report = run_demo(tmp_path, 12, size=(160, 240), console=PlainConsole(file=io.StringIO()))
    assert report.dense.mean_iou > 0.5
    assert report.delta.mean_iou == pytest.approx(report.dense.mean_iou, abs=0.02)
    assert report.mac_share < 1


def test_demo_writes_its_middle_frame(tmp_path):
    console = PlainConsole(file=io.StringIO())
    picture = tmp_path / "middle.png"
    run_demo(tmp_path, frames=4, size=SMALL, picture=picture, console=console)
    shown = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB).astype(int)
    with av.open(str(tmp_path / "demo.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    h, w = shown.shape[:2]  # the video's sides are even
    distances = [np.abs(shown - frame[:h, :w]).mean() for frame in frames]
    assert np.argmin(distances) == 2
    assert "middle.png" in console.file.getvalue()


def test_demo_refuses_other_kinds_of_pictures(tmp_path):
    with pytest.raises(SinkError, match=r"middle\.gif: a picture's name ends in \.jpg"):
        run_demo(tmp_path, frames=4, size=SMALL, picture=tmp_path / "middle.gif")
    assert not list(tmp_path.iterdir())


def test_demo_of_one_frame_is_refused(tmp_path):
    with pytest.raises(FrameError, match="2 or more"):
        run_demo(tmp_path, frames=1)
