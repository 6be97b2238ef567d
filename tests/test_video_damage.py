"""Sources that are damaged give all before the damage, and then an error; real clips."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from torchdelta.errors import SourceError
from torchdelta.video import open_source
from video_scenes import make_clip, read

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


def is_prefix(frames, whole):
    return all(np.array_equal(a, b) for a, b in zip(frames, whole, strict=False))


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
        good = [frame.picture for _, frame in zip(frames, source, strict=False)]
    assert len(frames) > 20
    assert is_prefix(frames, good)
