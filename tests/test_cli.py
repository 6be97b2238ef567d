"""The command line on real files: results, figures, damage, interruption."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import torchdelta
from conftest import require
from support import LONG, threads
from torchdelta.cli.app import app
from torchdelta.cli.compare import Comparison
from torchdelta.cli.track import Track, movements, summary
from torchdelta.engines.cpu import bind
from torchdelta.runtime.placement import watch
from torchdelta.runtime.stats import FrameStats
from torchdelta.video.board import Board
from torchdelta.video.sink import VideoWriter

KEYS = [
    "stream",
    "frame",
    "pts_s",
    "ms",
    "dense_ms",
    "changed_input",
    "mac_share",
    "error",
    "layer_error",
    "reason",
    "motion",
    "result",
    "dense_result",
    "agreement",
]
H, W = 48, 64
ROOT = Path(__file__).resolve().parents[1]

NETS = """
import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def branches():
    return Branches()


def net(c_in, c_out, stride=1):
    return nn.Sequential(
        nn.Conv2d(c_in, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, c_out, 3, 1, 1)
    )


def segment():
    return net(3, 3)


def segment_small():
    return net(3, 3, stride=2)


def one_class():
    return net(3, 1)


def denoise():
    return net(1, 1)
denoise.preprocess = dict(channels=1, input_range=(0, 1))


def picture():
    return net(3, 3)
picture.preprocess = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), color="bgr")


def classify():
    return nn.Sequential(net(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
classify.preprocess = dict(labels=["ant", "bee", "cat", "dog", "elk"])


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(3, 4)

    def forward(self, x):
        x = self.body(x)
        return {"aux": x[:, :1], "out": x, "pair": (x.mean((2, 3)), x * 2)}
"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of small networks in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS))
    yield tmp_path
    sys.modules.pop("nets", None)


def frame(index: int, h: int = H, w: int = W) -> np.ndarray:
    """A still texture with a bright square that moves two pixels a frame: [h, w, 3] uint8."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(40, 200, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    left = (2 * index) % (w - 16)
    picture[h // 3 : h // 3 + 12, left : left + 12] = (250, 240, 20)
    return picture


def images(path: Path, count: int, h: int = H, w: int = W) -> str:
    path.mkdir()
    for i in range(count):
        cv2.imwrite(str(path / f"{i:03}.png"), frame(i, h, w)[..., ::-1])
    return str(path)


def clip(path: Path, count: int, h: int = H, w: int = W) -> str:
    with VideoWriter(path, 10, (h, w)) as writer:
        for i in range(count):
            writer.write(frame(i, h, w))
    return str(path)


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    if code:
        assert "Traceback" not in result.output
    return result


def records(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def pictures(path: str | Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)]


def even(size: tuple[int, int]) -> tuple[int, int]:
    """The size of a video of such pictures."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def test_run_writes_one_line_and_one_picture_per_frame(folder: Path) -> None:
    source = clip(folder / "a.mp4", 12)
    result = call(
        "run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4",
        "--limit", "7",
    )  # fmt: skip
    lines = records()
    assert [list(line) for line in lines] == [KEYS] * 7
    assert [line["frame"] for line in lines] == list(range(7))
    assert {line["stream"] for line in lines} == {"a.mp4"}
    assert lines[0]["mac_share"] == 1.0
    assert all(0 < line["mac_share"] < 1 for line in lines[1:])
    assert all(line["ms"] > 0 and 0 <= line["changed_input"] <= 1 for line in lines)
    for key in ("dense_ms", "error", "layer_error", "result", "dense_result", "agreement"):
        assert all(line[key] is None for line in lines)
    shown = pictures("out.mp4")
    assert len(shown) == 7
    assert shown[0].shape == (*even(Board((H, W), 2).size), 3)
    assert "weights: random (seed 0), batch norms set on the run's first frames" in result.stderr
    assert "a.mp4" in result.stdout
    assert "wrote out.mp4" in result.stdout


def test_compare_measures_both_errors(folder: Path) -> None:
    source = images(folder / "a", 6)
    model = ["--model", "nets:Parts", "--compare", "--json", "out.jsonl"]
    result = call("run", source, *model, "--tolerance", "0")
    for line in records():
        assert line["dense_ms"] > 0
        assert line["error"] < 1e-5
        assert line["layer_error"] < 1e-5
    assert "speed-up" in result.stdout
    call("run", source, *model, "--tolerance", "0.2")
    assert max(line["layer_error"] for line in records()) > 1e-5


def test_new_references_count_in_the_summary() -> None:
    """Frames that are computed whole after the first one: their time and their work are real."""
    track = Track("pan")
    kinds = ["first frame", None, "scene cut", None, "scale"]
    for n, reason in enumerate(kinds):
        ms, share = (60.0, 1.5) if reason else (10.0, 0.1)
        stats = FrameStats(n, reason is not None, share, share, share, ms, reason)
        track.add(stats, Comparison(dense_ms=40.0, error=0.02, layer_error=0.01))
    assert list(track.ms) == [10, 60, 10, 60]
    assert track.first_ms == 60
    table = summary([track], compared=True)
    cells = {str(c.header).replace("-\n", "").replace("\n", " "): next(iter(c.cells))
             for c in table.columns}  # fmt: skip
    assert cells["median ms"] == "35.0"
    assert cells["MAC share"] == cells["changed input"] == "80.0%"
    # of medians
    assert cells["speedup"] == f"{40 / 35:.2f}x"
    assert "1 x scene cut; 1 x scale" in str(movements(track))


def test_no_layer_gate_error_without_layer_gates(folder: Path) -> None:
    """One convolution that only the caller reads: nothing but the input gate can err."""
    Path("single.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(3, 2, 3)\n")
    source = images(folder / "a", 6)
    call(
        "run", source, "--model", "single:build", "--compare", "--json", "out.jsonl",
        "--tolerance", "0.3",
    )  # fmt: skip
    lines = records()
    assert max(line["layer_error"] for line in lines) < 1e-5
    assert all(line["error"] >= line["layer_error"] - 1e-6 for line in lines)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("classify", "nets:classify"),
        ("segment", "nets:segment"),
        ("segment", "nets:segment_small"),
        ("segment", "nets:one_class"),
        ("segment", "nets:Parts"),
        ("image", "nets:denoise"),
        ("image", "nets:picture"),
        ("none", "nets:Parts"),
    ],
)
def test_results_by_task(task: str, model: str, folder: Path) -> None:
    source = images(folder / "a", 3, 33, 50)
    call(
        "run", source, "--model", model, "--task", task, "--json", "out.jsonl",
        "--save", "out.mp4",
    )  # fmt: skip
    assert len(pictures("out.mp4")) == 3
    for line in records():
        result = line["result"]
        match task:
            case "classify":
                assert result["label"] == ["ant", "bee", "cat", "dog", "elk"][result["top1"]]
                assert 0.2 <= result["score"] <= 1
            case "segment":
                assert sum(result["pixel_shares"].values()) == pytest.approx(1)
            case "image":
                assert isinstance(result["mean"], float)
            case _:
                assert result is None


def test_task_that_does_not_fit_the_output(folder: Path) -> None:
    source = images(folder / "a", 2)
    wrong = call("run", source, "--model", "nets:segment", "--task", "classify", code=1)
    assert "--task classify needs an output of [1, classes], this model gives" in wrong.stderr
    call("run", source, "--model", "nets:classify", "--task", "segment", code=1)
    call("run", source, "--model", "nets:classify", "--task", "image", code=1)


def test_failed_run_leaves_older_outputs_alone(folder: Path) -> None:
    source = images(folder / "a", 2)
    kept = [clip(folder / "out.mp4", 3), "out.jsonl"]
    Path("out.jsonl").write_text("older\n")
    before = [Path(name).read_bytes() for name in kept]
    args = ["run", source, "--json", "out.jsonl", "--save", "out.mp4", "--model"]
    call(*args, "nets:segment", "--task", "classify", code=1)
    call(*args, "nets:branches", code=1)
    assert [Path(name).read_bytes() for name in kept] == before
    call(*args, "nets:segment")
    assert (len(records()), len(pictures("out.mp4"))) == (2, 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.mp4", "--save", "a.mp4"], "--save a.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "--json", "./x/../a.mp4"], "would overwrite the source a.mp4"),
        (["a.mp4", "--save", "link.mp4"], "--save link.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "--save", "hard.mp4"], "--save hard.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "a-a_mp4.mp4", "--save", "a.mp4"], "overwrite the source a-a_mp4.mp4"),
        (["frames", "--json", "frames/000.png"], "would overwrite the source frames"),
        (["a.mp4", "--weights", "w.pth", "--json", "w.pth"], "overwrite the weights w.pth"),
        (["a.mp4", "--profile", "p.json", "--json", "p.json"], "overwrite the profile p.json"),
        (["a.mp4", "--model", "net.pt2", "--json", "net.pt2"], "overwrite the model net.pt2"),
        (["a.mp4", "--save", "new.mp4", "--json", "x/../new.mp4"], "overwrite --save new.mp4"),
    ],
)
def test_outputs_never_replace_an_input(args: list[str], said: str, folder: Path) -> None:
    clip(folder / "a.mp4", 2)
    clip(folder / "a-a_mp4.mp4", 2)
    images(folder / "frames", 2)
    Path("link.mp4").symlink_to("a.mp4")
    Path("hard.mp4").hardlink_to("a.mp4")
    Path("x").mkdir()
    Path("p.json").write_text("{}")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1)).eval()
    torch.save(net.state_dict(), "w.pth")
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, H, W),)), folder / "net.pt2")
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.is_file() and p.suffix != ".pyc"}
    model = [] if "--model" in args else ["--model", "plain:build"]
    Path("plain.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))\n"
    )
    result = call("run", *args, *model, code=1)
    assert said in result.stderr
    assert {p: p.read_bytes() for p in before} == before
    assert not Path("new.mp4").exists()


def test_several_sources_are_streams_that_end_on_their_own(folder: Path) -> None:
    a, b = images(folder / "a", 6), clip(folder / "b.mp4", 3)
    args = ["--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4", "--compare"]
    result = call("run", a, b, a, *args)
    lines = records()
    frames = {
        name: [line["frame"] for line in lines if line["stream"] == name]
        for name in ("a", "b.mp4", "a-2")
    }
    assert frames == {"a": list(range(6)), "b.mp4": list(range(3)), "a-2": list(range(6))}
    twins = [[x["mac_share"] for x in lines if x["stream"] == name] for name in ("a", "a-2")]
    assert twins[0] == twins[1]
    assert twins[0][0] == 1.0
    assert [len(pictures(f"out-{n}.mp4")) for n in ("a", "b_mp4", "a-2")] == [6, 3, 6]
    assert not Path("out.mp4").exists()
    assert "b.mp4" in result.stdout
    call("run", a, b, *args, "--limit", "2")
    assert len(records()) == 4


def test_sources_of_different_size_need_a_size(folder: Path) -> None:
    a, b = images(folder / "a", 2), images(folder / "b", 2, 30, 40)
    result = call("run", a, b, "--model", "nets:segment", code=1)
    assert "a is 48x64, b is 30x40" in result.stderr
    assert "--size" in result.stderr
    call("run", a, b, "--model", "nets:segment", "--size", "32x40", "--save", "out.mp4")
    assert pictures("out-b.mp4")[0].shape == (*even(Board((32, 40), 2).size), 3)


def test_a_source_that_changes_its_size_goes_on(folder: Path) -> None:
    source = Path(images(folder / "a", 9))
    for i in (3, 4, 5, 6):
        cv2.imwrite(str(source / f"{i:03}.png"), frame(i, 32, 80)[..., ::-1])
    args = ("run", str(source), "--model", "nets:segment", "--task", "segment", "--compare")
    for motion in ("none", "features"):
        result = call(*args, "--json", "out.jsonl", "--save", "out.mp4", "--motion", motion)
        lines = records()
        assert [n for n, line in enumerate(lines) if line["changed_input"] == 1] == [0, 3, 7]
        assert result.stderr.count("frames are 32x80 from here on, no longer 48x64") == 1
        # a size that was seen before is no news
        assert result.stderr.count("from here on") == 1
        assert max(line["layer_error"] for line in lines) < 0.1
        assert "computed whole after the first frame: 2 x first frame" in result.stdout
        shown = pictures("out.mp4")
        # with --compare dense has a panel too
        size = Board((48, 64), 3 if motion == "none" else 4).size
        assert {picture.shape for picture in shown} == {(*even(size), 3)}
        assert len(shown) == 9
    # with a size, frames are resized instead
    result = call(*args, "--size", "48x64", "--json", "out.jsonl")
    assert "from here on" not in result.stderr
    assert [line["changed_input"] == 1 for line in records()] == [True] + [False] * 8


def pan(path: Path, count: int, step: tuple[int, int], h: int = 96, w: int = 128) -> str:
    """A camera that moves over a still texture."""
    rng = np.random.default_rng(3)
    texture = cv2.resize(
        rng.integers(60, 190, (24, 24, 3), dtype=np.uint8),
        (420, 420),
        interpolation=cv2.INTER_CUBIC,
    )
    with VideoWriter(path, 10, (h, w)) as writer:
        for n in range(count):
            y, x = 150 + n * step[0], 20 + n * step[1]
            writer.write(texture[y : y + h, x : x + w])
    return str(path)


@pytest.mark.parametrize("motion", ["features", "codec", "translation", "auto"])
def test_a_moving_camera_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, motion: str
) -> None:
    # "auto" would find that so small a network is computed quicker than a motion is estimated
    monkeypatch.setattr(watch.Watch, "_saves_time", lambda self, share: True)
    monkeypatch.setattr(watch, "QUICKEST_MS", 0.0)
    monkeypatch.setattr(watch, "HOPELESS", float("inf"))
    monkeypatch.setattr(watch.Watch, "_may_look", lambda self: True)
    monkeypatch.setattr(watch.Watch, "_saves_nothing", lambda self: False)
    source = pan(folder / "pan.mp4", 24, (1, 5))
    args = ("run", source, "--model", "nets:segment", "--task", "segment", "--compare")
    call(*args, "--json", "still.jsonl")
    # with "keep", what lies at the edges differs from the dense network's
    args = (*args, "--motion", motion, "--border", "exact")
    result = call(*args, "--json", "out.jsonl", "--save", "out.mp4")
    still, lines = records("still.jsonl"), records()
    assert list(lines[0]) == KEYS
    assert all(line["motion"] is None for line in still)
    followed = [line["motion"] is not None for line in lines]
    start = followed.index(True)
    assert all(followed[start:])
    assert (start == 0) == (motion != "auto")
    assert lines[start]["reason"] == ("the camera moves" if start else "first frame")
    share = {
        name: np.mean([line["mac_share"] for line in some[start + 1 :]])
        for name, some in (("still", still), ("followed", lines))
    }
    assert share["followed"] < 0.6 * share["still"]
    origins = [line["motion"]["origin"] for line in lines[start:]]
    assert origins[-1][1] >= origins[0][1] + 40
    homography = np.array(lines[-1]["motion"]["homography"])
    assert np.allclose(homography[:2, 2], (5, 1), atol=0.3)
    assert max(line["layer_error"] for line in lines) < 0.1
    assert max(line["error"] for line in lines) < 0.2
    # the classes are the frame's: nearly those of the still camera
    shares = [line["result"]["pixel_shares"] for line in (still[-1], lines[-1])]
    assert shares[0].keys() == shares[1].keys()
    assert all(abs(shares[0][k] - shares[1][k]) < 0.1 for k in shares[0])
    # "auto" makes them later than the others do
    assert result.stderr.count("cameras are followed on windows of") == 1
    estimators = {line["motion"]["estimator"] for line in lines[start + 1 :]}
    by_corners = sum(line["motion"]["fallback"] is not None for line in lines[start:])
    if motion in ("features", "translation"):
        assert estimators == {motion}
    else:
        assert "codec" in estimators
    told = re.search(r"from corners in the picture with the other (\d+)", result.stdout)
    assert (int(told[1]) if told else 0) == by_corners
    moved = re.search(r"the window moved with (\d+) frames", result.stdout)
    assert moved
    assert int(moved[1]) >= 5
    shown = pictures("out.mp4")
    assert len(shown) == 24
    assert shown[0].shape == (*even(Board((96, 128), 4).size), 3)


@pytest.mark.parametrize("border", ["keep", "exact"])
def test_following_a_real_clip(folder: Path, data: Path, border: str) -> None:
    source = str(data / "clips/moving/rollercoaster_pan_960x540.mp4")
    args = ("run", source, "--model", "nets:segment_small", "--size", "144x256")
    result = call(
        *args, "--limit", "12", "--motion", "codec", "--border", border, "--task", "segment",
        "--json", "out.jsonl", "--save", "out.mp4",
    )  # fmt: skip
    lines = records()
    assert [line["frame"] for line in lines] == list(range(12))
    assert lines[-1]["motion"]["confidence"] > 0.5
    assert "the window moved" in result.stdout
    assert len(pictures("out.mp4")) == 12


def test_archive_takes_its_own_size(folder: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 32, 40),)), folder / "net.pt2")
    source = images(folder / "a", 3)
    result = call("run", source, "--model", "net.pt2", "--json", "out.jsonl", "--compare")
    assert "32x40" in result.stderr
    assert len(records()) == 3
    call("run", source, "--model", "net.pt2", "--size", "48x64", code=1)


def test_other_dtype_and_profile_of_nothing(folder: Path) -> None:
    source = images(folder / "a", 3)
    args = ["run", source, "--model", "nets:segment"]
    call(*args, "--dtype", "bf16", "--compare", "--json", "out.jsonl", "--tolerance", "0")
    assert max(line["error"] for line in records()) < 2e-2
    Path("bad.json").write_text("{")
    assert "bad.json" in call(*args, "--profile", "bad.json", code=1).stderr
    call(*args, "--profile", "none.json", code=1)


def test_damaged_video_keeps_what_came_before(folder: Path) -> None:
    path = folder / "a.mp4"
    source = clip(path, 30)
    whole = path.read_bytes()
    # the index is in front, so what is lost is pictures
    path.write_bytes(whole[: len(whole) * 2 // 3])
    result = call(
        "run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4", code=1
    )
    count = len(records())
    assert 1 <= count < 30
    assert len(pictures("out.mp4")) == count
    assert re.search(rf"a\.mp4: damaged at frame {count} \(\d+\.\d+ s\)", result.stderr)
    assert "a.mp4" in result.stdout


def test_damaged_image_does_not_stop_the_other_stream(folder: Path) -> None:
    a, b = images(folder / "a", 5), images(folder / "b", 5)
    (folder / "b" / "002.png").write_bytes(b"not a picture")
    result = call("run", a, b, "--model", "nets:segment", "--json", "out.jsonl", code=1)
    streams = [line["stream"] for line in records()]
    assert (streams.count("a"), streams.count("b")) == (5, 2)
    assert "002.png: frame 2 is damaged" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gone.mp4", "--model", "nets:segment"], "gone.mp4: no such file"),
        (["nets.py", "--model", "nets:segment"], "nets.py"),
        ([".", "--model", "nets:segment"], "holds no image"),
        (["a", "--model", "nets:segmant"], "close to it: segment"),
        (["a", "--model", "something"], "timm:NAME"),
        (["a", "--model", "nets:segment", "--weights", "none.pth"], "no such file"),
        (["a", "--model", "nets:segment", "--weights", "other.pth"], "4 keys unexpected"),
        (["a", "--model", "nets:segment", "--save", "out.txt"], "out.txt"),
    ],
)
def test_errors_are_one_message(args: list[str], said: str, folder: Path) -> None:
    images(folder / "a", 2)
    torch.save({f"x.{i}": torch.zeros(1) for i in range(4)}, "other.pth")
    result = call("run", *args, code=1)
    assert result.stderr.splitlines()[-1:] or result.stderr
    assert "error: " in result.stderr
    assert said in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["run", "a"],
        ["run", "--model", "nets:segment"],
        ["run", "a", "--model", "nets:segment", "--size", "480"],
        ["run", "a", "--model", "nets:segment", "--size", "0x4"],
        ["run", "a", "--model", "nets:segment", "--limit", "0"],
        ["run", "a", "--model", "nets:segment", "--tolerance", "-1"],
        ["run", "a", "--model", "nets:segment", "--tolerance", "nan"],
        ["run", "a", "--model", "nets:segment", "--task", "cook"],
        ["run", "a", "--model", "nets:segment", "--dtype", "int8"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(args: list[str]) -> None:
    call(*args, code=2)


def test_explain_names_every_step(folder: Path) -> None:
    text = call("explain", "nets:segment", "--size", "33x47").stdout
    assert "33x47" in text
    assert text.count("conv") >= 2
    assert "224x224" in call("explain", "nets:segment").stdout


def test_explain_compares_on_a_frame_that_is_not_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples: list[torch.Tensor] = []
    compile_ = torchdelta.compile

    def spy(model: Any, example: torch.Tensor, **options: Any) -> torchdelta.CompiledModel:
        examples.append(example)
        return compile_(model, example, **options)

    monkeypatch.setattr(torchdelta, "compile", spy)
    texts = [call("explain", "nets:segment", "--size", "33x47").stdout for _ in range(2)]
    assert texts[0] == texts[1]
    assert torch.equal(examples[0], examples[1])
    assert examples[0].float().std() > 50


def test_env_names_versions_devices_and_engines() -> None:
    text = call("env").stdout
    for word in ("torchdelta", torch.__version__.split("+")[0], "cpu", "cuda", "engines", "torch",
                 "instruction sets", "TORCHDELTA_CPU_ISA", "OpenMP"):  # fmt: skip
        assert word in text
    assert ("several OpenMP runtimes" in text) == (len(bind.openmp_runtimes()) > 1)


def test_env_says_why_the_cpu_engine_is_missing_and_what_fights_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind.library.cache_clear()
    monkeypatch.setattr(bind, "library_path", lambda: None)
    monkeypatch.setattr(bind, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"])
    monkeypatch.setenv("TORCHDELTA_CPU_ISA", "avx2")
    try:
        text = " ".join(call("env").stdout.split())
    finally:
        bind.library.cache_clear()
    for words in ("was not built", "compiler", "instruction sets │ none", "avx2",
                  "/b/libiomp5.so", "warning: several OpenMP runtimes"):  # fmt: skip
        assert words in text


def test_demo_runs(folder: Path) -> None:
    text = call("demo", "--frames", "3", "--size", "64x96").stdout
    assert "MAC" in text
    assert len(pictures("out/demo.mp4")) == 3


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from torchdelta.cli import main; main()", *args]


def test_help_imports_no_model_collection() -> None:
    code = (
        "import sys\nfrom torchdelta.cli.app import app\n"
        "assert not {'timm', 'torchvision', 'av'} & set(sys.modules)\n"
        "sys.argv = ['torchdelta', 'run', '--help']\napp()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("SOURCE", "--model", "--weights", "--task", "--compare", "Examples"):
        assert word in done.stdout
    version = subprocess.run(command("--version"), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"torchdelta \d+\.\d+\.\d+\S*\n", version.stdout)


# (a killed run's video and lines: tests/test_video.py)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), *([(signal.SIGTERM, 143), (signal.SIGKILL, -9)] if LONG else [])],
)
def test_interrupted_run_leaves_whole_files(number: int, code: int, folder: Path) -> None:
    source = clip(folder / "a.mp4", 3000, 32, 48)
    args = ["run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        # what runs behind a shell's `&` is started deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != 9 else None,
    ) as process:  # fmt: skip
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if Path("out.jsonl").read_text().count("\n") >= 8:
                    break
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    lines, shown = records(), pictures("out.mp4")
    assert 8 <= len(lines) < 3000
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        # the frame under way may have its line and not yet its picture
        assert len(lines) - 2 <= len(shown) <= len(lines)
    else:
        assert len(shown) == len(lines)
        assert "interrupted; so far:" in out


def test_classifies_the_room_with_real_weights(data: Path) -> None:
    require("timm")
    call(
        "run", str(data / "clips/static/room_768x432.mp4"),
        "--model", "timm:tf_efficientnet_lite0",
        "--weights", str(data / "weights/tf_efficientnet_lite0_imagenet_fp16.pth"),
        "--task", "classify", "--compare", "--limit", "4", "--json", "out.jsonl",
    )  # fmt: skip
    lines = records()
    assert len(lines) == 4
    assert lines[0]["mac_share"] == 1.0
    assert max(line["mac_share"] for line in lines[1:]) < 0.5
    assert max(line["layer_error"] for line in lines) < 0.1
    assert all(isinstance(line["result"]["label"], str) for line in lines)


def test_denoises_the_street_with_real_weights(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    call(
        "run", str(data / "clips/static/pedestrians_768x576.avi"),
        "--model", "examples.denoise:dncnn",
        "--weights", str(data / "weights/dncnn17_gray_sigma25.pth"),
        "--task", "image", "--compare", "--size", "96x128", "--limit", "4",
        "--json", str(folder / "out.jsonl"), "--save", str(folder / "out.mp4"),
    )  # fmt: skip
    lines = records(str(folder / "out.jsonl"))
    assert len(lines) == len(pictures(folder / "out.mp4")) == 4
    assert lines[0]["mac_share"] == 1.0
    assert all(0 < line["mac_share"] < 1 for line in lines[1:])
    assert all(math.isfinite(line["error"]) for line in lines)
    assert max(line["layer_error"] for line in lines) < 0.05
    assert all(0.1 < line["result"]["mean"] < 0.9 for line in lines)
