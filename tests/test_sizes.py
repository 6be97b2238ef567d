"""The size that a model was made for: where it is known from, and what is said of other frames."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from conftest import require
from torchdelta.capture.cards import frame_size, same_shape, size_advice
from torchdelta.capture.load import load_model
from torchdelta.cli.app import app
from torchdelta.cli.options import parse_asked_size
from torchdelta.errors import ModelError

NET = """
from torch import nn
def net():
    return nn.Conv2d(3, 2, 3, padding=1)
net.preprocess = dict(size=(32, 40))
def unknown():
    return nn.Conv2d(3, 2, 3, padding=1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two networks and frames of 96x160."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sizes_net.py").write_text(NET)
    (tmp_path / "frames").mkdir()
    rng = np.random.default_rng(0)
    for n in range(2):
        picture = rng.integers(0, 256, (96, 160, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / f"{n}.png"), picture)
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stderr


def test_advice_names_a_size_that_keeps_the_shape() -> None:
    said = size_advice("timm:tf_efficientnet_lite0", (224, 224), (720, 1280))
    assert said is not None
    assert said.startswith("tf_efficientnet_lite0 was made for 224x224, frames are 720x1280")
    assert "--size 224x384 keeps this clip's shape" in said
    assert "--size model is 224x224" in said
    small = size_advice("nets:net", (520, 520), (64, 96))
    assert small is not None
    assert "--size 512x768 keeps" in small


@pytest.mark.parametrize("frames", [(224, 224), (224, 398), (320, 480), (160, 200), (330, 600)])
def test_frames_near_the_models_size_need_no_advice(frames: tuple[int, int]) -> None:
    assert size_advice("timm:x", (224, 224), frames) is None
    assert size_advice("timm:x", None, (720, 1280)) is None


@pytest.mark.parametrize(
    ("frames", "shorter", "kept"),
    [((720, 1280), 224, (224, 384)), ((1280, 720), 224, (384, 224)), ((352, 640), 224, (224, 416)),
     ((64, 96), 224, (224, 320)), ((500, 10), 16, (1600, 32)), ((100, 100), 240, (256, 256))],
)  # fmt: skip
def test_the_same_shape_in_multiples_of_32(
    frames: tuple[int, int], shorter: int, kept: tuple[int, int]
) -> None:
    assert same_shape(frames, shorter) == kept


def test_what_frames_are_resized_to() -> None:
    assert frame_size("m", (8, 9), False, None) is None
    assert frame_size("m", (8, 9), True, None) == (8, 9)
    assert frame_size("m", (8, 9), False, "model") == (8, 9)
    assert frame_size("m", (8, 9), False, (4, 5)) == (4, 5)
    with pytest.raises(ModelError, match="m does not say what size it is for; give --size HxW"):
        frame_size("m", None, False, "model")


def test_size_option() -> None:
    assert parse_asked_size("Model") == "model"
    assert parse_asked_size("480x640") == (480, 640)
    with pytest.raises(typer.BadParameter, match="HEIGHTxWIDTH, such as 480x640; or: model"):
        parse_asked_size("modal")


@pytest.mark.parametrize(
    ("spec", "size", "fixed"),
    [
        ("timm:tf_efficientnet_lite0", (224, 224), False),
        ("timm:tf_efficientnet_lite2", (260, 260), False),
        ("torchvision:resnet18", (224, 224), False),
        ("torchvision:efficientnet_b1", (240, 240), False),
        ("torchvision:lraspp_mobilenet_v3_large", (520, 520), False),
        ("sizes_net:net", (32, 40), False),
        ("sizes_net:unknown", None, False),
    ],
)
def test_collections_say_what_a_model_was_made_for(
    spec: str, size: tuple[int, int] | None, fixed: bool
) -> None:
    if ":" in spec and spec.split(":")[0] in ("timm", "torchvision"):
        require(spec.split(":")[0])
    loaded = load_model(spec)
    assert (loaded.size, loaded.fixed_size) == (size, fixed)
    if size != (32, 40) and size is not None:
        assert loaded.mean is not None
        assert loaded.std is not None


def test_run_says_it_once_and_takes_the_models_size(folder: Path) -> None:
    args = ("run", "frames", "--model", "sizes_net:net")
    told = run(*args)
    assert told.count("net was made for 32x40, frames are 96x160") == 1
    assert "at 96x160" in told
    told = run(*args, "--size", "model")
    assert "made for" not in told
    assert "at 32x40" in told
    # who asks for a size has one in mind
    assert "made for" not in run(*args, "--size", "96x160")
    assert "--size HxW" in run("run", "frames", "--model", "sizes_net:unknown", "--size", "model",
                               code=1)  # fmt: skip
    run("explain", "sizes_net:net", "--size", "model")


def test_bench_says_it_too_and_takes_the_models_size(folder: Path) -> None:
    args = ("bench", "--model", "sizes_net:net", "--source", "frames", "--peers", "none")
    assert run(*args).count("net was made for 32x40, frames are 96x160") == 1
    assert "made for" not in run(*args, "--size", "model", "--json", "o.json")
    assert json.loads(Path("o.json").read_text())["size"] == [32, 40]
