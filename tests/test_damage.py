"""Which video files are damaged, and which only promise more than they hold or were joined."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from media import clip, packets, picture, read, said
from torchdelta.cli.app import app
from torchdelta.video import open_source
from torchdelta.video.ends import ends_inside_packet

NET = """
from torch import nn
def net():
    return nn.Conv2d(3, 2, 3, padding=1)
"""


def run(folder: Path, *args: str) -> tuple[int, str]:
    (folder / "plainnet.py").write_text(NET)
    result = CliRunner().invoke(app, ["run", *args, "--model", "plainnet:net"])
    return result.exit_code, result.output


# ------------------------------------------------------------------------------------------- joins


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("size", [(48, 64), (32, 96)], ids=["same", "other"])
def test_joined_recordings_lose_no_frame(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    one, other = clip(tmp_path / "a.ts", codec=codec), clip(tmp_path / "b.ts", 9, *size, codec)
    alone = [*read(one)[0], *read(other)[0]]
    assert len(alone) == 29
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + other.read_bytes())
    with open_source(joined) as source:
        frames, times = [], []
        for frame in source:
            frames.append(frame.picture)
            times.append(frame.pts_s)
    for frame, expected in zip(frames, alone, strict=True):
        np.testing.assert_array_equal(frame, expected)
    # the second part's time stamps begin again; the time goes on, from the stream's start
    np.testing.assert_allclose(times, np.arange(29) / 10, atol=1e-6)
    assert len(source.remarks) == 1
    assert "another recording begins at frame 20 (2.00 s)" in said(source, "note")[0]


def test_part_that_begins_between_two_keyframes_goes_on_at_the_next_one(tmp_path: Path) -> None:
    one = clip(tmp_path / "a.ts", 20).read_bytes()
    other = clip(tmp_path / "b.ts", 30, options={"g": "10"}).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one + other[len(other) // 6 // 188 * 188 :])
    frames, error, source = read(joined)
    assert error is None
    whole = read(tmp_path / "b.ts")[0]
    assert len(frames) == 20 + 20
    np.testing.assert_array_equal(frames[20], whole[10])
    assert said(source, "damage") == []


def counters_broken(data: bytes, at: int) -> bytes:
    """A transport stream with the counters of all video packets from the n-th on one further."""
    out, seen = bytearray(data), 0
    for start in range(0, len(out), 188):
        if (struct.unpack_from(">H", out, start + 1)[0] & 0x1FFF) == 0x100:
            seen += 1
            if seen > at:
                flags = out[start + 3]
                out[start + 3] = (flags & 0xF0) | ((flags + 1) & 0x0F)
    return bytes(out)


def test_marked_packet_whose_frame_decodes_is_only_noted(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.ts", 20, options={"g": "10"})
    whole = read(path)[0]
    path.write_bytes(counters_broken(path.read_bytes(), 30))
    frames, error, source = read(path)
    assert error is None
    assert len(frames) == 20
    assert all(map(np.array_equal, frames, whole))
    assert [text for text in said(source, "note") if "marked as incomplete" in text]


def test_lost_packets_are_damage_and_no_frame_after_them_gets_out(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.ts", 40, codec="mpeg2video", options={"g": "40"})
    data, whole = path.read_bytes(), read(path)[0]
    count = len(data) // 188
    noticed = 0
    for at in range(count // 3, count * 2 // 3, 5):
        path.write_bytes(data[: 188 * at] + data[188 * (at + 4) :])
        frames, error, _ = read(path)
        if error is not None:
            noticed += 1
            assert all(map(np.array_equal, frames, whole))
    assert noticed >= 5


# ---------------------------------------------------------------------------------------- promises


def header_with_one_more(path: Path) -> Path:
    """An AVI whose headers promise a frame more than there are."""
    data = bytearray(clip(path, 12, codec="mjpeg", pix="yuvj420p").read_bytes())
    for field in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        assert struct.unpack_from("<I", data, field) == (12,)
        struct.pack_into("<I", data, field, 13)
    path.write_bytes(data)
    return path


def repeating(path: Path) -> Path:
    """An AVI in which every third frame is an empty packet: the one before it is shown again."""
    data = clip(path, 12, codec="mjpeg", pix="yuvj420p").read_bytes()
    start = data.index(b"movi") + 4
    at, moved, index = start, bytearray(), 0
    table = bytearray()
    while data[at : at + 4] == b"00dc":
        (size,) = struct.unpack_from("<I", data, at + 4)
        content = b"" if index % 3 == 1 else data[at + 8 : at + 8 + size + size % 2]
        table += b"00dc" + struct.pack("<III", 16, 4 + len(moved), len(content))
        moved += b"00dc" + struct.pack("<I", len(content)) + content
        at, index = at + 8 + size + size % 2, index + 1
    head = bytearray(data[:start])
    struct.pack_into("<I", head, start - 8, 4 + len(moved))
    out = head + moved + b"idx1" + struct.pack("<I", len(table)) + table
    struct.pack_into("<I", out, 4, len(out) - 8)
    path.write_bytes(out)
    return path


def shown_long(path: Path) -> Path:
    """A Matroska file that lasts seconds longer than its last frame says."""
    data = bytearray(clip(path, 12).read_bytes())
    tag = data.index(b"00:00:01.2")
    data[tag : tag + 10] = b"00:00:07.2"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "make", "count"),
    [("h.avi", header_with_one_more, 12), ("l.mkv", shown_long, 12), ("r.avi", repeating, 8)],
)
def test_promise_missed_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Callable[[Path], Path],
    count: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / name)
    frames, error, source = read(path)
    assert (len(frames), error) == (count, None)
    kept = make is repeating
    assert len(said(source, "missed")) == (0 if kept else 1)
    code, output = run(tmp_path, str(path))
    assert (code, "ends early" in output) == (0, not kept)
    assert run(tmp_path, str(path), "--strict")[0] == (0 if kept else 1)


# --------------------------------------------------------------------------------- cut-off files

CUT: dict[str, dict[str, Any]] = {
    "a.ts": {},
    "a.mkv": {},
    "live.mkv": {"mux": {"live": "1"}},
    "a.webm": {"codec": "libvpx"},
    "f.mp4": {"mux": {"movflags": "frag_keyframe+empty_moov"}},
    "a.flv": {},
    "a.avi": {"codec": "mjpeg", "pix": "yuvj420p"},
}


@pytest.mark.parametrize("name", CUT)
def test_file_that_ends_inside_a_packet_is_damaged(tmp_path: Path, name: str) -> None:
    path = clip(tmp_path / name, 30, **CUT[name])
    whole, error, _ = read(path)
    assert (len(whole), error) == (30, None)
    place, size = packets(path)[20]
    os.truncate(path, place + size // 2 + 1 - (place + size // 2) % 2)
    frames, error, _ = read(path)
    assert error is not None
    assert "ends inside a packet" in error
    assert 16 < len(frames) <= 20
    assert all(map(np.array_equal, frames, whole))


def test_end_of_matroska_and_transport_streams(tmp_path: Path) -> None:
    for name in ("a.mkv", "live.mkv", "a.webm"):
        path = clip(tmp_path / name, 12, **CUT[name])
        assert not ends_inside_packet(path, "matroska,webm")
        place, size = packets(path)[6]
        # before its content a block has its track, a time and flags: four bytes
        for end, inside in ((place + 4 + size, False), (place + 3 + size, True), (place, True)):
            data = path.read_bytes()
            cut = tmp_path / "cut"
            cut.write_bytes(data[:end])
            # a cluster that knows its length is longer than what is there in any case
            assert ends_inside_packet(cut, "matroska,webm") == inside, (name, end)
    path = clip(tmp_path / "a.ts", 12)
    data = path.read_bytes()
    for lost in (0, 188, 1, 100, 187):
        path.write_bytes(data[: len(data) - lost])
        assert ends_inside_packet(path, "mpegts") == (lost % 188 > 0), lost
    before = b"\0\0\0\0"
    stamped = b"".join(before + data[at : at + 188] for at in range(0, len(data), 188))
    for lost in (0, 192, 10):
        path.write_bytes(stamped[: len(stamped) - lost])
        assert ends_inside_packet(path, "mpegts") == (lost % 192 > 0), lost


# ---------------------------------------------------------------------------------- --skip-damaged


def damaged_in_the_middle(path: Path, codec: str) -> tuple[list[np.ndarray], int]:
    """Write a clip and damage packet 13 of 30; returns the whole frames, and that packet's size."""
    pix = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip(path, 30, 96, 128, codec, pix, {"g": "10", "bf": "0"})
    whole = read(path)[0]
    place, size = packets(path)[13]
    data = bytearray(path.read_bytes())
    # FFmpeg's decoder of MJPEG notices little but a broken header
    at, wrong = place + size // 3, bytes(range(100, 140))
    if codec == "mjpeg":
        at, wrong = place + 8, bytes(600)
    data[at : at + len(wrong)] = wrong
    path.write_bytes(data)
    return whole, size


@pytest.mark.parametrize(("codec", "lost"), [("mpeg4", range(13, 20)), ("mjpeg", range(13, 14))])
def test_skip_damaged_goes_on_where_nothing_is_predicted_from_the_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, lost: range
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.avi"
    whole, _ = damaged_in_the_middle(path, codec)
    frames, error, _ = read(path)
    assert error is not None
    assert len(frames) == 13
    frames, error, source = read(path, skip_damaged=True)
    assert error is None
    good = [frame for i, frame in enumerate(whole) if i not in lost]
    assert len(frames) == len(good)
    assert all(map(np.array_equal, frames, good))
    (text,) = said(source, "damage")
    assert "damaged at frame 13 (1.30 s)" in text
    assert "goes on at the next keyframe" in text
    assert run(tmp_path, str(path))[0] == 1
    code, output = run(tmp_path, str(path), "--skip-damaged", "--json", "out.jsonl")
    assert code == 1
    assert "left out what is damaged in 1 place" in output
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(good)


def test_skip_damaged_ends_with_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 30, mux={"movflags": "faststart"})
    place, size = packets(path)[15]
    os.truncate(path, place + size // 2)
    default, _, _ = read(path)
    frames, error, source = read(path, skip_damaged=True)
    assert error is None
    assert len(frames) == len(default)
    assert "nothing good comes after it" in said(source, "damage")[0]


def test_skip_damaged_leaves_pictures_out(tmp_path: Path) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i)[..., ::-1])
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:300])
    frames, error, source = read(tmp_path, skip_damaged=True)
    assert error is None
    assert all(map(np.array_equal, frames, [picture(i) for i in (0, 1, 3, 4)]))
    assert len(frames) == 4
    assert "2.png: frame 2 is damaged" in said(source, "damage")[0]
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"")
    assert "holds no frame" in str(read(tmp_path, skip_damaged=True)[1])


def test_nothing_of_ffmpeg_reaches_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.avi"
    damaged_in_the_middle(path, "mpeg4")
    before = av.logging.get_level()
    read(path, skip_damaged=True)
    assert capfd.readouterr().err == ""
    assert av.logging.get_level() == before
