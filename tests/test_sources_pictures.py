"""Files of pictures: all their frames, their depth, their channels, and damage told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from media import clip, picture, read, said
from torchdelta.capture.load import load_model
from torchdelta.cli.app import app
from torchdelta.errors import SourceError
from torchdelta.video import open_source
from torchdelta.video.pixels import as_rgb

NETS = """
from torch import nn

def net(channels):
    made = nn.Conv2d(channels, 2, 3, padding=1)
    return made

def grey(): return net(1)
grey.preprocess = dict(channels=1, input_range=(0, 1))
def grey_alpha(): return net(2)
grey_alpha.preprocess = dict(channels=2)
def rgb(): return net(3)
rgb.preprocess = dict(mean=(.4, .5, .6), std=(.2, .3, .2))
def rgba(): return net(4)
rgba.preprocess = dict(channels=4)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("depthnets.py").write_text(NETS)
    return tmp_path


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


# -------------------------------------------------------------------------- several frames in one

LOOKS = [(250, 10, 20), (20, 240, 10), (10, 30, 245)]


def animated(path: Path) -> Path:
    first, *others = (Image.new("RGB", (24, 16), colour) for colour in LOOKS)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    if path.suffix != ".tif":
        options["duration"] = [100, 300, 200]
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.apng", "a.gif", "a.tif", "a.dat"])
def test_all_frames_of_a_file_are_read(folder: Path, name: str) -> None:
    path = animated(folder / (name if name != "a.dat" else "a.png"))
    path = path.rename(folder / name)
    with open_source(path) as source:
        assert (source.frames, source.size) == (3, (16, 24))
        frames, times = [], []
        for frame in source:
            frames.append(frame.picture)
            times.append(frame.pts_s)
    assert [frame.dtype for frame in frames] == [np.dtype(np.uint8)] * 3
    np.testing.assert_allclose([frame[8, 12] for frame in frames], LOOKS, atol=6)
    assert times == ([None] * 3 if name == "a.tif" else [0.0, 0.1, 0.4])


def test_frames_of_files_in_a_folder_follow_one_another(folder: Path) -> None:
    (folder / "in").mkdir()
    animated(folder / "in" / "1.webp")
    cv2.imwrite("in/0.png", np.zeros((16, 24, 3), np.uint8))
    cv2.imwrite("in/2.png", np.zeros((16, 24, 3), np.uint8))
    frames, error, _ = read("in")
    assert (len(frames), error) == (5, None)
    with open_source("in") as source:
        assert {frame.pts_s for frame in source} == {None}


def test_deep_pages_and_deep_animations(folder: Path) -> None:
    pages = [np.full((16, 24), 1000 + 50 * i, np.uint16) for i in range(3)]
    cv2.imwritemulti("a.tif", pages)
    frames, error, _ = read("a.tif", channels=1, value_range=(0, 2000))
    assert error is None
    assert [float(frame[3, 3, 0]) for frame in frames] == [1000, 1050, 1100]
    data = Path("a.tif").read_bytes()
    Path("a.tif").write_bytes(data[:-20])
    frames, error, _ = read("a.tif", channels=1, value_range=(0, 2000))
    assert "damaged" in str(error)


def test_folder_reads_other_suffixes_and_says_what_it_passes_over(folder: Path) -> None:
    (folder / "in").mkdir()
    cv2.imwrite("in/0.jpg", picture(0))
    Path("in/0.jpg").rename("in/0.jfif")
    cv2.imwrite("in/1.jp2", picture(1))
    Image.fromarray(picture(2)).save("in/2.gif")
    cv2.imwrite("in/3.pgm", picture(3)[..., 0])
    for name in ("notes.txt", "b.mp4", ".hidden"):
        Path(f"in/{name}").touch()
    frames, error, source = read("in")
    assert (len(frames), error) == (4, None)
    assert said(source, "note") == ["in: passed over 2 that are no images: b.mp4, notes.txt"]


# ------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_damaged_in_the_middle_is_noticed(folder: Path, progressive: int) -> None:
    rng = np.random.default_rng(1)
    _, encoded = cv2.imencode(
        ".jpg", picture(0, 240, 320), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    )
    good, path = encoded.tobytes(), folder / "a.jpg"
    path.write_bytes(good)
    assert read(path)[1] is None
    places = [int(share * len(good)) for share in (0.15, 0.3, 0.5, 0.7, 0.85)]
    noticed = 0
    for at in places:
        path.write_bytes(good[:at] + rng.bytes(512) + good[at + 512 :])
        error = read(path)[1]
        noticed += "a.jpg: frame 0 is damaged" in str(error)
        path.write_bytes(good[:at])
        assert "is damaged" in str(read(path)[1])
    # a sector of other bytes; a JPEG has no checksum, and few may decode to something
    assert noticed >= 4


def test_png_with_a_wrong_byte_anywhere_is_noticed(folder: Path) -> None:
    for name, pixels in (("a.png", picture(0)), ("b.png", picture(0).astype(np.uint16) * 250)):
        cv2.imwrite(name, pixels)
        good = Path(name).read_bytes()
        for at in range(10, len(good), max(1, len(good) // 25)):
            Path(name).write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
            assert "frame 0 is damaged" in str(read(name)[1])
            Path(name).write_bytes(good[:at])
            assert "frame 0 is damaged" in str(read(name)[1])


def write(path: Path) -> None:
    """Write a picture; OpenCV writes GIF from 4.12 on."""
    if path.suffix == ".gif":
        Image.fromarray(picture(0)).save(path)
    else:
        cv2.imwrite(str(path), picture(0))


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".jp2", ".gif"])
def test_cut_off_pictures_are_noticed(folder: Path, suffix: str) -> None:
    path = folder / f"a{suffix}"
    write(path)
    good = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(good[: int(share * len(good))])
        assert "frame 0 is damaged" in str(read(path)[1])


def test_odd_headers_of_a_jpeg_are_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite("a.jpg", picture(0))
    data = Path("a.jpg").read_bytes()
    # cameras append thumbnails and maps behind a picture
    Path("a.jpg").write_bytes(data + b"\0" * 100 + data)
    assert read("a.jpg")[1] is None
    decode = simplejpeg.decode_jpeg

    def warns(data: bytes, *args: Any, strict: bool = True) -> Any:
        if strict:
            raise ValueError("Warning: unknown JFIF revision number 9.09")
        return decode(data, *args, strict=False)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", warns)
    assert read("a.jpg")[1] is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_as_exif_says(folder: Path, orientation: int) -> None:
    look = cv2.resize(picture(3, 12, 16), (64, 48), interpolation=cv2.INTER_NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(look).save("a.jpg", exif=exif, quality=95)
    expected = cv2.imread("a.jpg")[..., ::-1]
    (frame,), error, _ = read("a.jpg")
    assert error is None
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 3


def test_cmyk_palette_and_bits(folder: Path) -> None:
    look = Image.new("RGB", (16, 8), (200, 30, 60))
    look.convert("CMYK").save("a.jpg", quality=95)
    look.quantize(4).save("b.png")
    look.convert("1").save("c.png")
    for name, expected in (("a.jpg", (200, 30, 60)), ("b.png", (200, 30, 60))):
        (frame,), error, _ = read(name)
        assert error is None
        np.testing.assert_allclose(frame[4, 8], expected, atol=8)
    assert {*np.unique(read("c.png")[0][0])} <= {0, 255}


def test_no_library_writes_to_standard_error(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".jpg", ".png", ".tif", ".jp2", ".webp", ".bmp", ".gif"):
        path = folder / f"a{suffix}"
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        read(path)
    # a profile that libpng complains of
    Image.fromarray(picture(0)).save("icc.png", icc_profile=b"\0" * 200)
    assert read("icc.png")[1] is None
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------- depth


def thermal(index: int) -> np.ndarray:
    """A picture of 1,000 levels around 7,000 with a warm square: uint16 [48, 64]."""
    levels = 7000 + np.arange(48 * 64).reshape(48, 64) % 1000
    levels[10:22, 10 + index : 22 + index] = 7990
    return levels.astype(np.uint16)


def deep_clip(path: Path, pix: str, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix
        for i, values in enumerate(frames):
            frame = av.VideoFrame(64, 48, pix)
            rows = np.zeros((48, frame.planes[0].line_size // 2), np.uint16)
            rows[:, :64] = values
            frame.planes[0].update(rows.tobytes())
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("kind", ["png", "tif", "jp2", "pgm", "gray16le", "gray12le", "gray10le"])
def test_grey_of_more_than_8_bits_keeps_its_values(folder: Path, kind: str) -> None:
    path = folder / f"a.{kind}"
    values = thermal(0)
    if kind.startswith("gray"):
        values = values if kind == "gray16le" else (values - 7000)
        path = deep_clip(folder / "a.mkv", kind, [values])
    else:
        cv2.imwrite(str(path), values)
    with open_source(path, channels=1) as source:
        assert source.value_range == (values.min(), values.max())
        frame = next(source).picture
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame[..., 0], values)
    low, high = int(values.min()) + 100, int(values.max()) - 100
    (frame,), error, source_ = read(path, value_range=(low, high))
    assert error is None
    assert frame.shape == (48, 64, 3)
    np.testing.assert_array_equal(frame[..., 1], np.clip(values, low, high))
    assert "clipped" in said(source_, "note")[0]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colour_of_16_bits_keeps_its_values(folder: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(500, 40000, (7, 9, 3), dtype=np.uint16)
    cv2.imwrite(f"a{suffix}", values[..., ::-1])
    (frame,), error, _ = read(f"a{suffix}")
    assert error is None
    np.testing.assert_array_equal(frame, values)


def test_floats_and_what_cannot_tell_a_range(folder: Path) -> None:
    values = np.linspace(-3, 9, 6 * 8, dtype=np.float32).reshape(6, 8)
    cv2.imwrite("a.tif", values)
    with open_source("a.tif", channels=1) as source:
        assert source.value_range == (-3, 9)
        np.testing.assert_array_equal(next(source).picture[..., 0], values)
    cv2.imwrite("even.png", np.full((6, 8), 700, np.uint16))
    assert open_source("even.png").value_range == (0, 65535)
    cv2.imwrite("a.png", picture(0))
    with pytest.raises(SourceError, match="has 8 bits"):
        open_source("a.png", value_range=(0, 10))
    for wrong in ((3, 3), (4, 1), (0, float("nan"))):
        with pytest.raises(ValueError, match="expected finite numbers"):
            open_source("a.tif", value_range=wrong)


def test_colour_video_of_10_bits_comes_as_8_and_says_so(folder: Path) -> None:
    path = clip(folder / "a.mp4", 3, codec="libx265", pix="yuv420p10le")
    frames, error, source = read(path)
    assert error is None
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert np.abs(frames[1].astype(int) - picture(1)).mean() < 12
    assert said(source, "note") == [f"{path}: 10-bit colour (yuv420p10le) is brought to 8 bits"]


def test_range_reaches_the_model_and_the_input_gate(folder: Path) -> None:
    (folder / "warm").mkdir()
    for i in range(4):
        cv2.imwrite(f"warm/{i}.png", thermal(3 * i))
    args = ["run", "warm", "--model", "depthnets:grey", "--json", "out.jsonl", "--compare"]
    result = run(*args, "--tolerance", "0", "--save", "out.mp4")
    assert "values 7000 to 7999, the least and the largest of the first frame" in result.output
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert max(line["error"] for line in lines) < 1e-5
    assert all(0.005 < line["changed_input"] < 0.3 for line in lines[1:])
    # against the full scale of 16 bits the square would never pass the input gate
    changed = {}
    for limits in ("7000,8000", "0,65535"):
        result = run(*args, "--range", limits)
        assert "the least and the largest" not in result.output
        lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        changed[limits] = max(line["changed_input"] for line in lines[1:])
    assert changed["7000,8000"] > 0.01
    assert changed["0,65535"] == 0
    for wrong in ("8000,7000", "7000", "a,b", "1,nan"):
        run(*args, "--range", wrong, code=2)
    cv2.imwrite("plain.png", picture(0))
    result = run("run", "plain.png", "--model", "depthnets:rgb", "--range", "1,2", code=1)
    assert "--range is for pictures of more than 8 bits" in result.output


def test_streams_share_one_range_whatever_their_depth(folder: Path) -> None:
    for name, start in (("low", 7000), ("high", 9000)):
        Path(name).mkdir()
        for i in range(2):
            cv2.imwrite(f"{name}/{i}.png", thermal(i) - 7000 + start)
    Path("plain").mkdir()
    for i in range(2):
        cv2.imwrite(f"plain/{i}.png", picture(i))
    result = run("run", "low", "high", "plain", "--model", "depthnets:rgb", "--save", "o.mp4")
    assert "values 7000 to 9999" in result.output


def test_model_of_a_range_computes_what_it_would_of_its_own_values(folder: Path) -> None:
    for spec in ("depthnets:rgb", "depthnets:grey"):
        loaded = load_model(spec)
        values = np.random.default_rng(0).random((1, 4, 5, loaded.channels), np.float32)
        given = loaded.taking((7000.0, 8000.0)).model_input(7000 + 1000 * values)
        torch.testing.assert_close(given, loaded.model_input(values), rtol=0, atol=5e-3)


def test_bench_takes_deep_clips(folder: Path) -> None:
    (folder / "warm").mkdir()
    for i in range(3):
        cv2.imwrite(f"warm/{i}.png", thermal(3 * i))
    args = ["bench", "--source", "warm", "--model", "depthnets:grey", "--peers", "none"]
    run(*args, "--json", "out.json")
    record = json.loads(Path("out.json").read_text())
    assert any("values 7000 to 7999" in note for note in record["notes"])
    assert 0 < record["changed_input"] < 0.3


# ---------------------------------------------------------------------------------------- channels


def with_alpha(index: int) -> np.ndarray:
    alpha = np.tile(np.arange(64, dtype=np.uint8) * 3 + index, (48, 1))
    return np.dstack([picture(index), alpha])


def test_source_gives_the_channels_that_are_wanted(folder: Path) -> None:
    look = with_alpha(1)
    Image.fromarray(look).save("rgba.png")
    Image.fromarray(look).convert("LA").save("la.png")
    luma = cv2.cvtColor(look[..., :3], cv2.COLOR_RGB2GRAY)
    for name, channels, expected in (
        ("rgba.png", 4, look),
        ("rgba.png", 3, look[..., :3]),
        ("rgba.png", 2, np.dstack([luma, look[..., 3]])),
        ("rgba.png", 1, luma[..., None]),
        ("la.png", 2, np.dstack([luma, look[..., 3]])),
        ("la.png", 4, np.dstack([luma, luma, luma, look[..., 3]])),
        ("la.png", 3, np.dstack([luma] * 3)),
    ):
        (frame,), error, _ = read(name, channels=channels)
        assert error is None
        np.testing.assert_allclose(frame.astype(int), expected, atol=1)
        assert as_rgb(frame).shape == (48, 64, 3)


def test_alpha_of_16_bits_is_stretched_over_the_range(folder: Path) -> None:
    values = np.full((4, 4, 4), 1000, np.uint16)
    values[0], values[..., 3] = 2000, 65535
    cv2.imwrite("a.png", values)
    (frame,), error, source = read("a.png", channels=4)
    assert error is None
    assert source is not None
    assert source.value_range == (1000, 2000)
    assert set(frame[..., 3].flat) == {2000.0}


def test_video_with_alpha(folder: Path) -> None:
    with av.open("a.mkv", "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgra"
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(with_alpha(i), format="rgba")
            container.mux(stream.encode(frame.reformat(format="bgra")))
        container.mux(stream.encode(None))
    frames, error, _ = read("a.mkv", channels=4)
    assert error is None
    np.testing.assert_array_equal(frames[1], with_alpha(1))


@pytest.mark.parametrize(("model", "kind"), [("rgba", "RGBA"), ("grey_alpha", "LA")])
def test_models_of_2_and_4_channels(folder: Path, model: str, kind: str) -> None:
    (folder / "in").mkdir()
    for i in range(3):
        Image.fromarray(with_alpha(i)).convert(kind).save(f"in/{i}.png")
    args = ["run", "in", "--model", f"depthnets:{model}", "--tolerance", "0", "--compare"]
    run(*args, "--json", "out.jsonl", "--save", "out.mp4", "--size", "24x32")
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert max(line["error"] for line in lines) < 1e-5
    run(*args, "--motion", "translation", "--save", "out.mp4")
    cv2.imwrite("plain.png", picture(0))
    result = run("run", "plain.png", "--model", f"depthnets:{model}", code=1)
    said_ = " ".join(result.output.split())
    assert "plain.png: has 3 channels (RGB), the model takes" in said_
    assert "give pictures with an alpha channel" in said_


def test_no_source_has_five_channels() -> None:
    with pytest.raises(SourceError, match=r"no 5 channels; they give 1 \(grey\), 2"):
        open_source("a.png", channels=5)


def test_pictures_in_memory_of_the_format_are_not_taken_for_a_video(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "PNG")
    Path("noname").write_bytes(buffer.getvalue())
    (frame,), error, source = read("noname")
    assert error is None
    assert source is not None
    assert source.frames == 1
    np.testing.assert_array_equal(frame, picture(0))
