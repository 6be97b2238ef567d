"""What names of sources and outputs stand for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from media import clip, picture, read, said, times_s
from torchdelta.cli.app import app
from torchdelta.errors import SourceError
from torchdelta.video import VideoWriter, open_source
from torchdelta.video.names import Name, files_of, printable, resolve

ODD_NAMES = [
    "2024-01-01T12:30:00.mp4",
    "concat:x.mp4",
    "file:y.mp4",
    "data:z.mp4",
    "pipe:",
    "-dash.mp4",
    "frame%03d.mp4",
    "a b.mp4",
    "[tag].mp4",
    os.fsdecode(b"n\xff.mp4"),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clip") / "a.mp4", 5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_exists_is_a_file_whatever_it_is_called(template: Path, name: str) -> None:
    shutil.copy(template, name)
    frames, error, source = read(name)
    assert (len(frames), error) == (5, None)
    assert source is not None
    source.name.encode()
    assert source.remarks == []


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:o.mkv", "file:o.mov", "o%d.mp4"])
def test_what_is_written_is_a_file_whatever_it_is_called(folder: Path, name: str) -> None:
    with VideoWriter(name, 10, (48, 64)) as writer:
        for i in range(3):
            writer.write(picture(i))
    assert os.listdir(folder) == [name]
    assert len(times_s(Path(name))) == 3


def test_folder_wins_over_a_camera_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir("2024")
    cv2.imwrite("2024/0.png", picture(0))
    frames, error, source = read("2024")
    assert (len(frames), error) == (1, None)
    assert said(source, "note") == ["2024 is a folder here; camera:2024 names the camera"]
    assert resolve("camera:2024") == Name(camera=2024)
    assert resolve(2024) == Name(camera=2024)
    assert resolve("7") == Name(camera=7)
    # a path is no index
    with pytest.raises(SourceError, match="no such file"):
        resolve(Path("7"))
    assert files_of(["2024", "camera:2024", "7"]) == [Path("2024")]


def test_a_camera_s_file_and_a_link(template: Path) -> None:
    os.symlink(template, "0")
    frames, error, source = read("0")
    assert (len(frames), error) == (5, None)
    assert "0 is a file here; camera:0 names the camera" in said(source, "note")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://127.0.0.1:9/x.mp4", r"^http://127.0.0.1:9/x.mp4: a URL. URLs come with live"),
        ("rtsp://cam/1", "live sources, which are not built yet"),
        ("file:///tmp/x.mp4", "without file://"),
        ("-", "-: no such file or folder"),
        ("pipe:", "no such file or folder"),
        ("concat:x.mp4|y.mp4", "no such file or folder"),
        ("camera:x", "no such file or folder"),
        ("", "name is empty"),
        ("/dev/null", "is a device"),
        ("nothing/at/all.mp4", "no such file or folder"),
    ],
)
def test_names_that_stand_for_nothing(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(name)


def test_empty_file_and_link_to_nothing() -> None:
    Path("empty.mp4").touch()
    with pytest.raises(SourceError, match=r"empty\.mp4: cannot be opened as a video: it is empty"):
        open_source("empty.mp4")
    Path("empty.png").touch()
    with pytest.raises(SourceError, match=r"empty\.png: frame 0 is damaged .* it is empty"):
        open_source("empty.png")
    os.symlink("gone", "link.mp4")
    with pytest.raises(SourceError, match=r"link\.mp4: no such file"):
        open_source("link.mp4")


def test_unprintable_names_are_printed() -> None:
    assert printable(os.fsdecode(b"n\xff.mp4")) == r"n\xff.mp4"
    with pytest.raises(SourceError) as caught:
        open_source(os.fsdecode(b"gone\xff.mp4"))
    assert r"gone\xff.mp4" in str(caught.value)
    str(caught.value).encode()


def test_command_line_takes_odd_names(template: Path) -> None:
    Path("oddnet.py").write_text("from torch import nn\ndef net(): return nn.Conv2d(3, 2, 3)\n")
    shutil.copy(template, "concat:x.mp4")
    os.mkdir("2024")
    cv2.imwrite("2024/0.png", picture(0))
    args = ["run", "concat:x.mp4", "2024", "--model", "oddnet:net", "--save", "12:30.mp4"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "2024 is a folder here; camera:2024 names the camera" in result.output
    assert len(times_s(Path("12:30-concat_x_mp4.mp4"))) == 5
    result = CliRunner().invoke(app, ["run", "camera:99", "--model", "oddnet:net"])
    assert result.exit_code == 1
    assert "camera 99 cannot be opened" in result.output
    # a clip is played several times, a camera and a pipe only once
    os.mkfifo("pipe.ts")
    for name, what in (("camera:0", "camera 0"), ("pipe.ts", "pipe.ts, a pipe,")):
        result = CliRunner().invoke(app, ["bench", "--source", name, "--model", "oddnet:net"])
        assert result.exit_code == 1
        assert f"{what} cannot be played twice" in " ".join(result.output.split())


def test_cameras_that_are_not_there_leave_no_line_on_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SourceError, match="camera 99 cannot be opened"):
        open_source("camera:99")
    assert capfd.readouterr().err == ""
