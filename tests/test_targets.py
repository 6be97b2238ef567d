"""Output that leads to something else than a file of its own: nothing of it is replaced."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from torchdelta import Profile
from torchdelta.bench.report import write_json
from torchdelta.cli.outputs import check_not_open
from torchdelta.errors import SinkError
from torchdelta.targets import names_standard_output, target_of
from torchdelta.video.sink import JsonLines, VideoWriter

OLD = b"what stood here\n"
LINE = b'{"a": 1}\n'


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A user's file, and a descriptor that stands at its end, as a shell hands it over."""
    path = tmp_path / "theirs.jsonl"
    path.write_bytes(OLD)
    number = os.open(path, os.O_WRONLY)
    os.lseek(number, 0, os.SEEK_END)
    yield path, number
    os.close(number)


def named(path: Path, text: str) -> Path:
    link = path.parent / "link.jsonl"
    link.symlink_to(text)
    return link


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}", "link"])
def test_descriptors_are_written_to_where_they_stand(opened: tuple[Path, int], form: str) -> None:
    path, number = opened
    where = form.format(number, pid=os.getpid())
    if form == "link":
        where = str(named(path, f"/dev/fd/{number}"))
    with JsonLines(where) as lines:
        lines.write({"a": 1})
    assert path.read_bytes() == OLD + LINE
    write_json(Path(where), {"b": 2.0})
    Profile().save(where)
    written = path.read_bytes()
    assert written.startswith(OLD + LINE + b'{\n "b"')
    assert b"torchdelta-profile" in written
    # it is still the shell's
    os.write(number, b"end")
    assert path.read_bytes() == written + b"end"


def test_descriptors_for_reading_are_refused(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(SinkError, match="reading only"):
        JsonLines(f"/dev/fd/{number}")
    os.close(number)


def test_pipes_and_devices_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    # more than a pipe holds
    record = {"a": list(range(30_000))}
    with JsonLines(pipe) as lines:
        lines.write(record)
    reader.join(timeout=60)
    assert json.loads(got[0]) == record
    with JsonLines("/dev/null") as lines:
        lines.write({"a": 1})
    write_json(Path("/dev/null"), {"a": 1.0})
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_videos_replace_files_only(tmp_path: Path, opened: tuple[Path, int]) -> None:
    path, number = opened
    links = {"fd.mp4": f"/dev/fd/{number}", "null.mp4": "/dev/null", "out.mp4": "/dev/stdout"}
    for name, text in links.items():
        (tmp_path / name).symlink_to(text)
        with pytest.raises(SinkError, match="no file that a video can replace"):
            VideoWriter(tmp_path / name, 10, (16, 16))
        assert (tmp_path / name).is_symlink()
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(SinkError, match="no file that a video can replace"):
        VideoWriter(tmp_path / "pipe.mp4", 10, (16, 16))
    assert path.read_bytes() == OLD


def test_links_to_files_stay_links(tmp_path: Path) -> None:
    for name, kept in (("a.mp4", "kept.mp4"), ("a.jsonl", "kept.jsonl"), ("a.json", "kept.json")):
        (tmp_path / kept).write_bytes(OLD)
        (tmp_path / name).symlink_to(kept)
    with VideoWriter(tmp_path / "a.mp4", 10, (16, 16)) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    with JsonLines(tmp_path / "a.jsonl") as lines:
        lines.write({"a": 1})
    Profile().save(tmp_path / "a.json")
    assert (tmp_path / "kept.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "kept.jsonl").read_bytes() == LINE
    assert Profile.load(tmp_path / "kept.json") == Profile()
    assert all((tmp_path / f"a.{kind}").is_symlink() for kind in ("mp4", "jsonl", "json"))


def test_what_is_open_already_is_no_target(opened: tuple[Path, int]) -> None:
    path, number = opened
    with pytest.raises(SinkError, match=f"is open as descriptor {number} already"):
        check_not_open([("--json", path)])
    # by its own name it is what the user means
    check_not_open([("--json", Path(f"/dev/fd/{number}"))])
    check_not_open([("--json", path.with_name("new.jsonl"))])


def test_standard_output_has_several_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", str(tmp_path / "link")):
        assert names_standard_output(name), name
    for name in ("/dev/stderr", "/dev/null", "1", "stdout", str(tmp_path / "new")):
        assert not names_standard_output(name), name
    assert target_of("/dev/stderr").descriptor == 2
    assert target_of(tmp_path / "new").regular
