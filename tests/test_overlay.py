"""Overlays: classes, heat, text, pictures side by side."""

import numpy as np
import pytest
import torch

from support import load_file
from torchdelta.video import open_source, overlay
from video_scenes import ROOT, scene

SIZES = [(1, 1), (32, 32), (63, 130), (130, 63), (720, 1280)]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_overlays_take_any_size_and_change_nothing_in_place(size):
    h, w = size
    rgb = scene(0, h, w)
    kept = rgb.copy()
    classes = np.arange(h * w).reshape(h, w) % 7
    pictures = [
        overlay.segmentation(rgb, classes),
        overlay.segmentation(rgb, torch.ones(1, (h + 7) // 8, (w + 7) // 8, dtype=torch.int64)),
        overlay.heat(rgb, np.linspace(0, 1, h * w, dtype=np.float32).reshape(h, w)),
        overlay.heat(rgb, np.ones((3, 5), np.float32)),
        overlay.caption(rgb, "frame 12, changed 3.4 %, MACs 12.1 %" * 3),
        overlay.caption(rgb, ""),
        overlay.labels(rgb, [("tabby cat", 0.83), ("a very long class name" * 4, 0.1)]),
        overlay.labels(rgb, []),
        overlay.image(rgb, torch.rand(1, 3, h, w)),
    ]
    for picture in pictures:
        assert picture.shape == (h, w, 3)
        assert picture.dtype == np.uint8
        assert not np.shares_memory(picture, rgb)
    np.testing.assert_array_equal(rgb, kept)


def test_segmentation_blends_classes_and_leaves_the_background():
    rgb = np.full((2, 4, 3), 100, np.uint8)
    palette = np.array([(0, 0, 0), (200, 0, 50)], np.uint8)
    got = overlay.segmentation(rgb, np.array([[0, 1, 255, -1]]), palette, alpha=0.5)
    assert got[0].tolist() == [[100] * 3, [150, 50, 75], [100] * 3, [100] * 3]
    assert got[1].tolist() == got[0].tolist()


def test_palette_tells_neighbours_apart():
    colours = overlay.default_palette().astype(int)
    assert colours.shape == (256, 3)
    assert np.abs(colours[2:] - colours[1:-1]).sum(axis=1).min() > 60


def test_heat_shows_the_dimmed_picture_at_zero_and_stands_out_above():
    rgb = np.full((4, 4, 3), (90, 120, 60), np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[0, 0], values[0, 1], values[0, 2], values[3, 3] = 0.02, 0.5, 1.0, np.nan
    got = overlay.heat(rgb, values).astype(int)
    cold = got[2, 2]
    assert cold.max() == cold.min() < 60
    assert got[3, 3].tolist() == cold.tolist()
    brightness = got.sum(axis=2)
    assert np.abs(got[0, 0] - cold).sum() > 15
    assert brightness[2, 2] < brightness[0, 1] < brightness[0, 2]


@pytest.mark.parametrize("size", [(96, 160), (720, 1280)])
def test_text_is_light_on_a_dark_strip_at_its_edge(size):
    rgb = np.full((*size, 3), 200, np.uint8)
    below = overlay.caption(rgb, "frame 12")
    assert below[-1].max() <= 60
    assert below.max() > 230
    np.testing.assert_array_equal(below[: size[0] // 2], rgb[: size[0] // 2])


def test_image_results_become_pictures():
    rgb = np.zeros((6, 8, 3), np.uint8)
    grey = torch.full((1, 1, 6, 8), 0.5)
    grey[0, 0, 0, 0], grey[0, 0, 0, 1], grey[0, 0, 0, 2] = 7.0, -1.0, float("nan")
    got = overlay.image(rgb, grey)
    assert got[0, :4].tolist() == [[255] * 3, [0] * 3, [0] * 3, [128] * 3]
    colour = np.zeros((3, 6, 8), np.float32)
    colour[0] = 1
    assert overlay.image(rgb, colour)[2, 2].tolist() == [255, 0, 0]
    ready = scene(0, 6, 8)
    np.testing.assert_array_equal(overlay.image(rgb, ready), ready)
    assert overlay.image(rgb, torch.ones(1, 3, 12, 16, dtype=torch.bfloat16)).min() == 255
    with pytest.raises(ValueError, match=r"shape \[1, 5, 6, 8\] is no image"):
        overlay.image(rgb, torch.zeros(1, 5, 6, 8))


def test_side_by_side_pads_the_lower_picture():
    left, right = np.full((4, 3, 3), 9, np.uint8), np.full((6, 5, 3), 7, np.uint8)
    got = overlay.side_by_side(left, right)
    assert got.shape == (6, 8, 3)
    assert (got[:4, :3] == 9).all()
    assert not got[4:, :3].any()
    assert (got[:, 3:] == 7).all()


def test_denoiser_of_the_examples_takes_its_weights_and_denoises(data):
    model = load_file(ROOT / "examples" / "denoise.py").dncnn().eval()
    assert model.preprocess == {"channels": 1, "input_range": (0.0, 1.0)}
    weights = data / "weights" / "dncnn17_gray_sigma25.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    with open_source(data / "clips" / "static" / "pedestrians_768x576.avi", gray=True) as source:
        clean = (
            torch.from_numpy(next(source).picture[200:296, 300:396, 0]).float()[None, None] / 255
        )
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    with torch.no_grad():
        denoised = model(clean + noise)
    assert (denoised - clean).square().mean() < 0.25 * noise.square().mean()
