"""Sources: folders, images, video files, cameras; what cannot be opened."""

import os
import struct

import av
import cv2
import numpy as np
import pytest

from torchdelta.errors import SourceError
from torchdelta.video import open_source
from video_scenes import make_clip, read, scene


def test_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 9, 100, 1):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), np.full((6, 8, 3), i, np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(tmp_path) as source:
        assert (source.size, source.fps, source.frames) == ((6, 8), 25.0, 4)
        assert source.name == tmp_path.name
        assert [int(f.picture[0, 0, 0]) for f in source] == [1, 9, 10, 100]
        assert source.position == 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp", ".tif"])
def test_images_come_as_rgb_and_as_luma(tmp_path, suffix):
    bgr = np.zeros((31, 17, 3), np.uint8)
    bgr[..., 2] = 250
    cv2.imwrite(str(tmp_path / f"a{suffix}"), bgr)
    with open_source(tmp_path / f"a{suffix}") as source:
        frame = next(source).picture
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
        frames = [frame.picture for frame in source]
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
        np.testing.assert_array_equal(next(source).picture, np.rot90(upright, -1))


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
        sizes = [frame.vectors.size for frame in source if frame.vectors is not None]
    assert {(48, 64), (32, 64)} == set(sizes)


def test_closed_source_ends(tmp_path):
    source = open_source(make_clip(tmp_path / "clip.mp4"))
    next(source)
    source.close()
    source.close()
    assert list(source) == []
    assert source.position == 1


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
        assert next(source).picture[0, 0].tolist() == [3, 2, 1]
        with pytest.raises(SourceError, match="camera 3: stopped delivering after 5 frames"):
            list(source)
    assert source.position == 5
    assert FakeCamera.released == before + 1


def test_camera_that_is_not_there_gets_a_clear_error(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    with pytest.raises(SourceError, match="camera 7 cannot be opened"):
        open_source("7")
