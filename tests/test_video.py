import json
import os
import resource
import signal
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from support import load_file
from torchdelta.errors import FrameError, SourceError
from torchdelta.video import JsonLines, SinkError, VideoWriter, open_source, overlay

ROOT = Path(__file__).resolve().parents[1]
CLIPS = {
    "static/pedestrians_768x576.avi": (300, 10.0),
    "static/room_768x432.mp4": (1394, 10.0),
    "static/road_640x352.mp4": (905, 24.01),
    "static/juggle_1280x720.mp4": (247, 24.0),
    "static/lab_1920x1080.mp4": (72, 28.05),
    "moving/rollercoaster_pan_960x540.mp4": (70, 24.0),
    "moving/bag_handheld_480x360.avi": (196, 25.0),
    "moving/dashcam_960x540.mp4": (221, 25.0),
    "moving/bedroom_pan_960x540.mp4": (200, 30.0),
}


def scene(index, h=48, w=64):
    """A picture that tells its index: a noisy field that moves, and a bar of that length."""
    y, x = np.mgrid[:h, :w]
    field = 90 + 60 * np.sin((x + 2 * index) / 5) * np.cos(y / 7)
    # noise keeps the packets of all frames about equally long
    field += np.random.default_rng(index).normal(0, 8, (h, w))
    rgb = np.repeat(field[..., None], 3, axis=2).astype(np.uint8)
    rgb[: h // 4, : 1 + index % w] = (200, 60, 30)
    return rgb


def make_clip(
    path, n=30, h=48, w=64, codec="libx264", pix="yuv420p", options=None, mux=None, times=None
):
    """Write a clip with any codec and container; `times` are time stamps in tenths of a second."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = h, w, pix
        stream.options = options or {}
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(scene(i, h, w), format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, gray=False):
    """All frames that a source gives, and the message of the error that ended it."""
    frames = []
    try:
        with open_source(path, gray=gray) as source:
            frames.extend(source)
    except SourceError as error:
        return frames, str(error)
    return frames, None


def is_prefix(frames, whole):
    return all(np.array_equal(a, b) for a, b in zip(frames, whole, strict=False))


# ---------------------------------------------------------------------------------- folders, images


def test_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 9, 100, 1):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), np.full((6, 8, 3), i, np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(tmp_path) as source:
        assert (source.size, source.fps, source.frames) == ((6, 8), 25.0, 4)
        assert source.name == tmp_path.name
        assert [int(f[0, 0, 0]) for f in source] == [1, 9, 10, 100]
        assert source.position == 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp", ".tif"])
def test_images_come_as_rgb_and_as_luma(tmp_path, suffix):
    bgr = np.zeros((31, 17, 3), np.uint8)
    bgr[..., 2] = 250
    cv2.imwrite(str(tmp_path / f"a{suffix}"), bgr)
    with open_source(tmp_path / f"a{suffix}") as source:
        frame = next(source)
    assert frame.shape == (31, 17, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_allclose(frame[15, 8], (250, 0, 0), atol=6)
    frames, error = read(tmp_path, gray=True)
    assert error is None
    assert frames[0].shape == (31, 17, 1)
    assert frames[0][15, 8, 0] == pytest.approx(0.299 * 250, abs=4)


def test_image_with_alpha_or_16_bits_becomes_what_the_first_one_is(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((5, 5, 4), (10, 20, 30, 128), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((5, 5), 0x8000, np.uint16))
    frames, error = read(tmp_path)
    assert error is None
    assert [f[0, 0].tolist() for f in frames] == [[30, 20, 10], [128, 128, 128]]


def test_images_may_change_their_size(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((6, 8 + (i == 1), 3), np.uint8))
    frames, error = read(tmp_path)
    assert error is None
    assert [f.shape for f in frames] == [(6, 8, 3), (6, 9, 3), (6, 8, 3)]


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_damaged_image_ends_the_folder_after_the_good_ones(tmp_path, content):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), scene(i))
    if content == "truncated":
        content = (tmp_path / "1.png").read_bytes()[:200]
    (tmp_path / "1.png").write_bytes(content)
    frames, error = read(tmp_path)
    assert len(frames) == 1
    assert "1.png: frame 1 is damaged" in error


# --------------------------------------------------------------------------- what cannot be opened


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])


def cut_mp4(path):
    data = make_clip(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


NOT_SOURCES = {
    "missing": ("clip.mp4", lambda p: None, "no such file or folder"),
    "folder of videos": (
        "folder",
        lambda p: (p.mkdir(), (p / "a.mp4").touch()),
        r"holds videos \(a\.mp4 …\).* name one of them",
    ),
    "empty folder": ("folder", lambda p: p.mkdir(), "holds no image"),
    "zero bytes": ("clip.mp4", lambda p: p.write_bytes(b""), "cannot be opened as a video"),
    "text as mp4": ("clip.mp4", lambda p: p.write_text("hello\n" * 99), "cannot be opened"),
    "text": ("clip.txt", lambda p: p.write_text("hello\n" * 99), "no video stream"),
    "noise": ("clip.avi", lambda p: p.write_bytes(os.urandom(9999)), "cannot be opened"),
    "sound": ("clip.mp4", audio_only, "no video stream"),
    "mp4 without index": ("clip.mp4", cut_mp4, "moov atom not found"),
}


@pytest.mark.parametrize("case", NOT_SOURCES)
def test_what_is_no_source_gets_a_clear_error(tmp_path, case):
    name, make, message = NOT_SOURCES[case]
    make(tmp_path / name)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_and_file_get_a_clear_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0)
    clip = make_clip(tmp_path / "clip.mp4")
    clip.chmod(0)
    for path in (folder, clip):
        with pytest.raises(SourceError, match="Permission denied"):
            open_source(path)


# ------------------------------------------------------------------------------------- video files


def test_video_tells_its_size_rate_and_count(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", n=12)
    with open_source(str(path)) as source:
        assert (source.name, source.size, source.fps, source.frames) == (
            "clip.mp4",
            (48, 64),
            10.0,
            12,
        )
        assert source.position == 0
        frames = list(source)
        assert source.position == 12
    for i, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame.astype(int) - scene(i)).mean() < 8
    assert all(f.flags.owndata or f.base is not frames[0] for f in frames[1:])


@pytest.mark.parametrize(
    ("name", "codec", "pix"),
    [
        ("a.mkv", "libx264", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
    ],
)
def test_container_without_a_count_is_read_to_its_end(tmp_path, name, codec, pix):
    with open_source(make_clip(tmp_path / name, codec=codec, pix=pix)) as source:
        assert source.frames is None
        assert sum(1 for _ in source) == 30


@pytest.mark.parametrize("size", [(31, 63), (7, 5)])
def test_odd_sizes_and_colours_are_exact_in_a_lossless_clip(tmp_path, size):
    path = make_clip(tmp_path / "clip.mkv", 3, *size, codec="ffv1", pix="bgr0")
    frames, error = read(path)
    assert error is None
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, scene(i, *size))


@pytest.mark.parametrize("matrix", ["BT.601", "BT.709"])
def test_colours_follow_the_matrix_and_span_the_full_range(tmp_path, matrix):
    # limited range: black 16, white 235
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 4, 8, "yuv420p"
        stream.codec_context.colorspace = 1 if matrix == "BT.709" else 6
        stream.codec_context.color_range = 1
        frame = av.VideoFrame(8, 4, "yuv420p")
        for plane, value in zip(frame.planes, (235, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        for plane, value in zip(frame.planes, (100, 100, 180), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (white, colour), error = read(path)
    assert error is None
    assert white[0, 0].tolist() == [255, 255, 255]
    luma, cb, cr = (100 - 16) * 255 / 219, (100 - 128) * 255 / 224, (180 - 128) * 255 / 224
    kr, kb = (0.2126, 0.0722) if matrix == "BT.709" else (0.299, 0.114)
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    np.testing.assert_allclose(colour[2, 4], (red, green, blue), atol=4)
    (white, colour), error = read(path, gray=True)
    assert (white[0, 0, 0], colour.shape) == (255, (4, 8, 1))
    # grey means the same for every source: that of the RGB picture
    assert colour[2, 4, 0] == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=3)


def test_variable_frame_rate_loses_no_frame(tmp_path):
    times = [0, 1, 2, 9, 10, 40, 41, 42, 90, 91]
    path = make_clip(tmp_path / "clip.mp4", n=10, times=times)
    with open_source(path) as source:
        assert 0 < source.fps < 10
        assert sum(1 for _ in source) == 10


def test_rotated_video_is_turned_upright(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", n=3)
    (upright, *_), _ = read(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    unit = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert data[at : at + 36] == unit
    # QuickTime's matrix for a quarter turn clockwise: x' = h - y, y' = x
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000)
    path.write_bytes(data)
    with open_source(path) as source:
        assert source.size == (64, 48)
        np.testing.assert_array_equal(next(source), np.rot90(upright, -1))


def test_recording_that_begins_between_keyframes_is_no_damage(tmp_path):
    path = make_clip(tmp_path / "clip.ts", n=40, options={"g": "10"})
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    frames, error = read(path)
    assert error is None
    assert 10 <= len(frames) < 40


def test_a_video_may_change_its_size(tmp_path):
    path = tmp_path / "clip.ts"
    parts = [make_clip(tmp_path / f"{h}.ts", 4, h, 64) for h in (48, 32)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, error = read(path)
    assert error is None
    assert [f.shape for f in frames] == [(48, 64, 3)] * 4 + [(32, 64, 3)] * 4
    with open_source(path, vectors=True) as source:
        assert source.size == (48, 64)
        sizes = [source.vectors.size for _ in source if source.vectors is not None]
    assert {(48, 64), (32, 64)} == set(sizes)


def test_closed_source_ends(tmp_path):
    source = open_source(make_clip(tmp_path / "clip.mp4"))
    next(source)
    source.close()
    source.close()
    assert list(source) == []
    assert source.position == 1


# ------------------------------------------------------------------------------------------ damage

DAMAGED = {
    "avi mjpeg": ("clip.avi", {"codec": "mjpeg", "pix": "yuvj420p"}),
    "avi mpeg4": ("clip.avi", {"codec": "mpeg4", "options": {"g": "3"}}),
    "mp4 h264": ("clip.mp4", {"mux": {"movflags": "faststart"}}),
    "mov mpeg4": (
        "clip.mov",
        {"codec": "mpeg4", "options": {"g": "3"}, "mux": {"movflags": "faststart"}},
    ),
    "mkv h264": ("clip.mkv", {}),
}


def packets_of(path):
    with av.open(str(path)) as container:
        return sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("cut", [9, 24])
def test_truncated_video_gives_the_frames_before_the_end(tmp_path, case, cut):
    name, how = DAMAGED[case]
    path = make_clip(tmp_path / name, **how)
    whole, error = read(path)
    assert (len(whole), error) == (30, None)
    pos, size = packets_of(path)[cut]
    os.truncate(path, pos + size // 2)
    frames, error = read(path)
    # of the packets before the cut, B-frames leave the last ones without their neighbours
    assert cut - 4 < len(frames) <= cut
    assert is_prefix(frames, whole)
    assert f"damaged at frame {len(frames)} ({len(frames) / 10:.2f} s)" in error


def test_mp4_cut_between_two_frames_is_noticed(tmp_path):
    path = make_clip(
        tmp_path / "clip.mp4", mux={"movflags": "faststart"}, options={"tune": "zerolatency"}
    )
    os.truncate(path, sum(packets_of(path)[19]))
    with open_source(path) as source:
        assert sum(1 for _ in source) == 20
    (remark,) = source.remarks
    assert remark.kind == "missed"
    assert "ends early, it promises 30 frames and holds 20" in remark.text


@pytest.mark.parametrize("case", ["avi mpeg4", "mov mpeg4", "mp4 h264"])
@pytest.mark.parametrize("at", [0.4, 0.6])
def test_overwritten_bytes_end_the_video_there(tmp_path, case, at):
    name, how = DAMAGED[case]
    path = make_clip(tmp_path / name, n=60, h=96, w=128, **how)
    whole, _ = read(path)
    data = bytearray(path.read_bytes())
    pos, size = packets_of(path)[int(at * 60)]
    data[pos + size // 3 : pos + size // 3 + 40] = bytes(range(100, 140))[: size // 2]
    path.write_bytes(data)
    frames, error = read(path)
    assert is_prefix(frames, whole)
    assert 0.4 * at * 60 < len(frames) <= at * 60 + 1
    assert f"damaged at frame {len(frames)} " in error


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_no_frame_predicted_from_a_damaged_one_gets_out(tmp_path, codec):
    path = make_clip(
        tmp_path / "clip.mkv", n=40, h=96, w=128, codec=codec, options={"bf": "2", "g": "20"}
    )
    whole, error = read(path, gray=True)
    assert (len(whole), error) == (40, None)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    reported = 0
    for at in rng.integers(int(0.2 * len(good)), int(0.9 * len(good)), 12):
        data = bytearray(good)
        data[at : at + 60] = rng.bytes(60)
        path.write_bytes(data)
        frames, error = read(path, gray=True)
        if error:
            reported += 1
            assert is_prefix(frames, whole)
    # a decoder cannot know all damage
    assert reported >= 3


def test_damaged_source_ends_after_its_error(tmp_path):
    path = make_clip(tmp_path / "clip.avi", codec="mjpeg", pix="yuvj420p")
    os.truncate(path, path.stat().st_size // 2)
    source = open_source(path)
    with pytest.raises(SourceError):
        list(source)
    assert list(source) == []
    assert 0 < source.position < 30


# ------------------------------------------------------------------------------------------ camera


class FakeCamera:
    """Stands in for cv2.VideoCapture: five frames, then nothing."""

    released = 0

    def __init__(self, index):
        self.left = 5 if index == 3 else 0

    def isOpened(self):
        return self.left > 0

    def get(self, _prop):
        return 0.0

    def read(self):
        self.left -= 1
        if self.left < 0:
            return False, None
        return True, np.full((4, 6, 3), (1, 2, 3), np.uint8)

    def release(self):
        FakeCamera.released += 1


@pytest.mark.parametrize("spec", [3, "3"])
def test_camera_gives_rgb_and_says_when_it_stops(monkeypatch, spec):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    before = FakeCamera.released
    with open_source(spec) as source:
        assert (source.name, source.size, source.fps, source.frames) == (
            "camera 3",
            (4, 6),
            25,
            None,
        )
        assert next(source)[0, 0].tolist() == [3, 2, 1]
        with pytest.raises(SourceError, match="camera 3: stopped delivering after 5 frames"):
            list(source)
    assert source.position == 5
    assert FakeCamera.released == before + 1


def test_camera_that_is_not_there_gets_a_clear_error(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    with pytest.raises(SourceError, match="camera 7 cannot be opened"):
        open_source("7")


# ----------------------------------------------------------------------------------------- writing


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
        frames = list(source)
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


# ----------------------------------------------------------------------------------------- overlay

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


# --------------------------------------------------------------------------------- with real clips


@pytest.mark.parametrize("clip", CLIPS)
def test_good_clips_are_read_whole_without_alarm(data, clip):
    frames, fps = CLIPS[clip]
    with open_source(data / "clips" / clip, gray=True) as source:
        w, h = Path(clip).stem.rsplit("_", 1)[1].split("x")
        assert source.size == (int(h), int(w))
        assert source.frames == frames
        assert source.fps == pytest.approx(fps, abs=0.01)
        assert sum(1 for _ in source) == frames


@pytest.mark.parametrize("clip", [c for c in CLIPS if "pedestrians" in c or "juggle" in c])
def test_truncated_real_clip_is_reported_where_it_breaks_off(data, tmp_path, clip):
    whole = (data / "clips" / clip).read_bytes()
    path = tmp_path / Path(clip).name
    path.write_bytes(whole[: len(whole) // 4])
    frames, error = read(path)
    assert f"damaged at frame {len(frames)} (" in error
    with open_source(data / "clips" / clip) as source:
        good = [frame for _, frame in zip(frames, source, strict=False)]
    assert len(frames) > 20
    assert is_prefix(frames, good)


def test_denoiser_of_the_examples_takes_its_weights_and_denoises(data):
    model = load_file(ROOT / "examples" / "denoise.py").dncnn().eval()
    assert model.preprocess == {"channels": 1, "input_range": (0.0, 1.0)}
    weights = data / "weights" / "dncnn17_gray_sigma25.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    with open_source(data / "clips" / "static" / "pedestrians_768x576.avi", gray=True) as source:
        clean = torch.from_numpy(next(source)[200:296, 300:396, 0]).float()[None, None] / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    with torch.no_grad():
        denoised = model(clean + noise)
    assert (denoised - clean).square().mean() < 0.25 * noise.square().mean()
