"""Writers of videos and of JSON lines."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from torchdelta.errors import FrameError
from torchdelta.video import JsonLines, SinkError, VideoWriter, open_source
from video_scenes import ROOT, read, scene


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("size", [(48, 64), (33, 63)])
def test_writer_makes_an_ordinary_video(tmp_path, suffix, size):
    path = tmp_path / "new" / "folders" / f"clip{suffix}"
    with VideoWriter(path, 29.97, size) as writer:
        for i in range(15):
            writer.write(scene(i, *size))
    assert writer.frames == 15
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
    with open_source(path) as source:
        h, w = size
        assert source.size == (h + h % 2, w + w % 2)
        assert source.fps == pytest.approx(29.97, rel=1e-3)
        frames = [frame.picture for frame in source]
    assert len(frames) == 15
    for i, frame in enumerate(frames):
        assert np.abs(frame[:h, :w].astype(int) - scene(i, *size)).mean() < 8


def test_writer_keeps_colours(tmp_path):
    colours = [(255, 255, 255), (0, 0, 0), (200, 40, 40), (40, 160, 40), (30, 60, 220)]
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10, (32, 32)) as writer:
        for colour in colours:
            writer.write(np.full((32, 32, 3), colour, np.uint8))
    frames, _ = read(path)
    for colour, frame in zip(colours, frames, strict=True):
        np.testing.assert_allclose(frame[16, 16], colour, atol=4)


def test_finished_mp4_has_its_index_in_front(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10, (48, 64)) as writer:
        for i in range(5):
            writer.write(scene(i))
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    with open_source(path) as source:
        assert source.frames == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_error_inside_the_block_leaves_a_playable_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"

    def run():
        with VideoWriter(path, 10, (48, 64)) as writer:
            for i in range(20):
                writer.write(scene(i))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    frames, error = read(path)
    assert (len(frames), error) == (20, None)


KILLED_RUN = """
import sys
import numpy as np
from torchdelta.video import JsonLines, VideoWriter
with VideoWriter(sys.argv[1], 10, (48, 64)) as video, JsonLines(sys.argv[2]) as lines:
    for i in range(10**6):
        video.write(np.full((48, 64, 3), i % 256, np.uint8))
        lines.write({"frame": i, "text": "x" * 3000})
        if i == 30:
            print("go", flush=True)
"""


def test_killed_run_leaves_a_playable_video_and_whole_lines(tmp_path):
    path, log = tmp_path / "clip.mp4", tmp_path / "log.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(path), str(log)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert run.stdout.readline() == b"go\n"
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    text = log.read_text()
    assert text.endswith("\n")
    records = [json.loads(line) for line in text.splitlines()]
    assert [r["frame"] for r in records] == list(range(len(records)))
    frames, _ = read(path)
    assert len(frames) >= 29
    assert len(frames) >= len(records) - 2
    for i, frame in enumerate(frames):
        assert abs(int(frame[20, 20, 0]) - i % 256) <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_every_written_frame_but_the_last_is_in_the_file_at_once(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with VideoWriter(path, 10, (48, 64)) as writer:
        for i in range(10):
            writer.write(scene(i))
            if i > 1:
                frames, _ = read(path)
                assert len(frames) >= i


def test_failed_rewrite_keeps_the_fragmented_video(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("torchdelta.video.sink._copy_packets", fail)
    writer = VideoWriter(path, 10, (48, 64))
    for i in range(5):
        writer.write(scene(i))
    with pytest.warns(RuntimeWarning, match=r"stays a fragmented video.*no space"):
        writer.close()
    assert len(read(path)[0]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_outputs_without_content_leave_no_file(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 10, (48, 64)), JsonLines(tmp_path / "log.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_older_files_stay_until_there_is_something_to_write(tmp_path, suffix):
    path, log = tmp_path / f"clip{suffix}", tmp_path / "log.jsonl"
    for older in (path, log):
        older.write_text("old\n" * 9)
    with VideoWriter(path, 10, (48, 64)) as writer, JsonLines(log), pytest.raises(FrameError):
        writer.write(scene(0, 4, 4))
    with pytest.raises(SinkError, match="cannot be written"):
        VideoWriter(path, 10, (48, 99999))
    assert path.read_text() == log.read_text() == "old\n" * 9
    with VideoWriter(path, 10, (48, 64)) as writer:
        writer.write(scene(0))
    assert len(read(path)[0]) == 1


def test_writer_refuses_what_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    cases = [
        ("clip.avi", 10, (48, 64), r"cannot write \.avi; .*\.mp4, \.mov, \.mkv"),
        ("clip", 10, (48, 64), "file without suffix"),
        ("file/clip.mp4", 10, (48, 64), "folder cannot be created"),
        ("folder.mp4", 10, (48, 64), "Is a directory"),
        ("clip.mp4", 0, (48, 64), "fps is 0"),
        ("clip.mp4", float("nan"), (48, 64), "fps is nan"),
        ("clip.mp4", 10, (0, 64), "size is 0x64"),
        ("clip.mp4", 10, (48, 99999), "cannot be written"),
    ]
    for name, fps, size, message in cases:
        with pytest.raises(SinkError, match=message):
            VideoWriter(tmp_path / name, fps, size)
    with VideoWriter(tmp_path / "clip.mp4", 10, (48, 64)) as writer:
        with pytest.raises(FrameError, match=r"float64 \[48, 64, 3\], clip.mp4 takes uint8"):
            writer.write(np.zeros((48, 64, 3)))
        with pytest.raises(FrameError, match=r"takes uint8 \[48, 64, 3\]"):
            writer.write(np.zeros((48, 63, 3), np.uint8))
    with pytest.raises(SinkError, match="already closed"):
        writer.write(scene(0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_reported(tmp_path):
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)

    def run():
        with VideoWriter(tmp_path / "out.mp4", 10, (96, 96)) as writer:
            for _ in range(5):
                writer.write(noise)

    # a limit on the size of files stands for a full disk
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    try:
        with pytest.raises(SinkError, match="File too large"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    with JsonLines(tmp_path / "out.jsonl") as lines, pytest.raises(SinkError, match="No space"):
        lines.write({"frame": 0})


def test_json_lines_hold_only_what_json_knows(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    with JsonLines(path) as lines:
        lines.write({"a": float("nan"), "b": [np.float32("inf"), 1.5], "c": {"d": (-np.inf, 2)}})
        lines.write({"a": np.int64(3), "b": torch.tensor([1.0, float("nan")]), "c": np.ones(2)})
        lines.write({"a": None, "b": True, "c": "two\nlines é"})
        # whole lines are in the file before it is closed
        assert path.read_text().count("\n") == lines.lines == 3
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"a": None, "b": [None, 1.5], "c": {"d": [None, 2]}},
        {"a": 3, "b": [1.0, None], "c": [1.0, 1.0]},
        {"a": None, "b": True, "c": "two\nlines é"},
    ]
    with pytest.raises(SinkError, match="already closed"):
        lines.write({})


def test_json_lines_replace_an_older_file(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("old\n" * 9)
    with JsonLines(path) as lines:
        lines.write({"new": 1})
    assert path.read_text() == '{"new": 1}\n'
