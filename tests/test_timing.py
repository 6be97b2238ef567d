"""When frames are shown: in their source, in the JSON lines, in the saved video."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from media import clip, picture, read, times_s
from torchdelta.cli.app import app
from torchdelta.video import VideoWriter, camera, open_source

# tenths of a second
UNEVEN = [0, 1, 2, 9, 10, 40, 41, 42, 90, 91]
NET = "from torch import nn\ndef net(): return nn.Conv2d(3, 2, 3, padding=1)\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("timenet.py").write_text(NET)
    return tmp_path


def source_times(path: Path) -> list[float | None]:
    with open_source(path) as source:
        return [frame.pts_s for frame in source]


def run(*args: str) -> list[dict[str, object]]:
    args = ("run", *args, "--model", "timenet:net", "--json", "out.jsonl")
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_source_tells_when_each_frame_is_shown(folder: Path, name: str) -> None:
    path = clip(folder / name, 10, times=UNEVEN)
    np.testing.assert_allclose(source_times(path), np.array(UNEVEN) / 10, atol=2e-3)


def test_time_counts_from_the_stream_s_start(folder: Path) -> None:
    path = clip(folder / "a.ts", 10, mux={"output_ts_offset": "3600"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time >= 3600 * 90000
    np.testing.assert_allclose(source_times(path), np.arange(10) / 10, atol=1e-6)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3 // 188 * 188 - 5])
    frames, error, _ = read(path)
    assert f"damaged at frame {len(frames)} ({len(frames) / 10:.2f} s)" in str(error)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_writer_keeps_given_times(folder: Path, suffix: str) -> None:
    path = folder / f"a{suffix}"
    # from any beginning; a frame without a time, and one out of order, follow evenly
    given = [5.0, 5.04, 5.1, 6.0, None, 5.5, 20.0]
    with VideoWriter(path, 25, (48, 64)) as writer:
        for i, pts_s in enumerate(given):
            writer.write(picture(i), pts_s)
    expected = [0, 0.04, 0.1, 1.0, 1.9, 2.8, 15.0]
    np.testing.assert_allclose(times_s(path), expected, atol=1e-3)


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30000 / 1001, 60])
def test_writer_without_times_is_even_to_the_tick(folder: Path, rate: float) -> None:
    path = folder / "a.mp4"
    with VideoWriter(path, rate, (48, 64)) as writer:
        for i in range(8):
            writer.write(picture(i))
    np.testing.assert_allclose(times_s(path), np.arange(8) / rate, atol=1e-6)


@pytest.mark.parametrize("motion", ["none", "translation"])
def test_saved_video_keeps_the_source_s_timing(folder: Path, motion: str) -> None:
    clip(folder / "a.mp4", 10, times=UNEVEN)
    lines = run("a.mp4", "--save", "out.mp4", "--motion", motion)
    expected = np.array(UNEVEN) / 10
    np.testing.assert_allclose([line["pts_s"] for line in lines], expected, atol=1e-6)
    np.testing.assert_allclose(times_s(Path("out.mp4")), expected, atol=1e-3)


def test_each_stream_keeps_its_own_timing_up_to_the_limit(folder: Path) -> None:
    clip(folder / "a.mp4", 10, times=UNEVEN)
    clip(folder / "b.ts", 10)
    lines = run("a.mp4", "b.ts", "--save", "out.mkv", "--limit", "7")
    for name, expected in (("a.mp4", np.array(UNEVEN[:7]) / 10), ("b.ts", np.arange(7) / 10)):
        times = [line["pts_s"] for line in lines if line["stream"] == name]
        np.testing.assert_allclose(times, expected, atol=1e-6)
        saved = Path(f"out-{name.replace('.', '_')}.mkv")
        np.testing.assert_allclose(times_s(saved), expected, atol=2e-3)


def test_folder_of_images_has_no_times_and_is_saved_evenly(folder: Path) -> None:
    os.mkdir("frames")
    for i in range(4):
        cv2.imwrite(f"frames/{i}.png", picture(i))
    lines = run("frames", "--save", "out.mp4")
    assert [line["pts_s"] for line in lines] == [None] * 4
    np.testing.assert_allclose(times_s(Path("out.mp4")), np.arange(4) / 25, atol=1e-4)


def test_camera_s_frames_have_the_time_of_their_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        def __init__(self, index: int) -> None:
            self.left = 3

        def isOpened(self) -> bool:
            return True

        def get(self, prop: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, np.ndarray]:
            self.left -= 1
            return self.left >= 0, picture(0)

        def release(self) -> None:
            pass

    clock = iter([100.0, 100.5, 103.0])
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(camera, "now_s", lambda: next(clock))
    with open_source("camera:0") as source:
        assert source.is_live
        times = []
        for _ in range(3):
            times.append(next(source).pts_s)
    assert times == [0.0, 0.5, 3.0]
