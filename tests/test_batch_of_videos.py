"""A folder of videos on the command line: one after another, each with its own outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import torchdelta
from torchdelta.cli.app import app
from torchdelta.cli.folders import videos_in
from torchdelta.cli.outputs import is_folder, paths_in, video_paths
from torchdelta.errors import SourceError
from torchdelta.video.board import Board
from torchdelta.video.sink import VideoWriter

NET = "from torch import nn\ndef net(): return nn.Conv2d(3, 2, 3, padding=1)\n"
SIZES = {"a.mp4": (32, 48), "b.mkv": (32, 48), "c.mp4": (40, 64)}


def clip(path: Path, count: int, h: int, w: int) -> None:
    rng = np.random.default_rng(3)
    still = cv2.resize(rng.integers(40, 200, (4, 6, 3), np.uint8), (w, h))
    with VideoWriter(path, 10, (h, w)) as writer:
        for n in range(count):
            picture = still.copy()
            picture[8:18, 2 * n : 2 * n + 10] = (250, 240, 20)
            writer.write(picture)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a network and three short videos of two sizes in `clips`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch_net.py").write_text(NET)
    (tmp_path / "clips").mkdir()
    for n, (name, size) in enumerate(SIZES.items()):
        clip(tmp_path / "clips" / name, 3 + n, *size)
    yield tmp_path
    sys.modules.pop("batch_net", None)


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["run", *args, "--model", "batch_net:net"])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def shape(path: str) -> tuple[int, int, int]:
    """Frames, height and width of a video."""
    with av.open(path) as container:
        pictures = list(container.decode(video=0))
    return len(pictures), pictures[0].height, pictures[0].width


def test_each_video_has_its_own_outputs_and_one_network_serves_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_ = torchdelta.compile

    def spy(*args: Any, **options: Any) -> Any:
        compiled.append(compile_(*args, **options))
        return compiled[-1]

    made: list[tuple[int, int]] = []
    make = torchdelta.CompiledModel._engine_for

    def spy_size(self: torchdelta.CompiledModel, size: tuple[int, int]) -> Any:
        made.append(size)
        return make(self, size)

    monkeypatch.setattr(torchdelta, "compile", spy)
    monkeypatch.setattr(torchdelta.CompiledModel, "_engine_for", spy_size)
    result = run("clips", "--save", "out", "--json", "log.jsonl", "--compare")
    assert len(compiled) == 1
    # the second size was captured once, on the way
    assert made == [SIZES["c.mp4"]]
    *frames, last = lines("log.jsonl")
    order = [(name, n) for count, name in enumerate(SIZES, 3) for n in range(count)]
    assert [(line["stream"], line["frame"]) for line in frames] == order
    # each begins anew
    assert [line["frame"] for line in frames if line["reason"] == "first frame"] == [0, 0, 0]
    for count, (name, size) in enumerate(SIZES.items(), 3):
        h, w = (side + side % 2 for side in Board(size, 2).size)
        assert shape(f"out/{Path(name).stem}.mp4") == (count, h, w)
    record = last["summary"]
    assert record["model"] == "batch_net:net"
    assert (record["tolerance"], record["videos"], record["frames"]) == (0.04, 3, 12)
    assert record["seconds"] > 0
    assert {one["stream"]: tuple(one["size"]) for one in record["streams"]} == SIZES
    assert all(one["median_ms"] > 0 and one["speedup"] > 0 for one in record["streams"])
    assert record["failed"] == {}
    # told once, in one table
    assert result.stderr.count("tolerance 0.04, engine") == 1
    assert "3 of 3: c.mp4, 40x64" in result.stderr
    assert all(name in result.stdout for name in SIZES)
    assert "3 videos in" in result.stdout
    assert "of a turn" not in result.stdout


def test_lines_and_summary_in_a_folder() -> None:
    run("clips", "--json", "logs", "--limit", "2", "--size", "16x24")
    assert sorted(p.name for p in Path("logs").iterdir()) == [
        "a.jsonl", "b.jsonl", "c.jsonl", "summary.json",
    ]  # fmt: skip
    assert [line["stream"] for line in lines("logs/c.jsonl")] == ["c.mp4"] * 2
    (record,) = lines("logs/summary.json")
    assert record["size"] == [16, 24]
    assert [one["frames"] for one in record["streams"]] == [2, 2, 2]


def test_a_broken_video_stops_only_itself(folder: Path) -> None:
    (folder / "clips" / "a.mp4").write_bytes(b"no video")
    result = run("clips", "--json", "log.jsonl", code=1)
    *frames, last = lines("log.jsonl")
    assert {line["stream"] for line in frames} == {"b.mkv", "c.mp4"}
    assert list(last["summary"]["failed"]) == ["a.mp4"]
    assert "a.mp4" in result.stderr
    assert "2 of 3 videos" in result.stdout
    for name in ("b.mkv", "c.mp4"):
        (folder / "clips" / name).write_bytes(b"no video")
    assert "c.mp4" in run("clips", code=1).stderr


def test_mixed_folders_and_folders_beside_other_sources_get_a_word(folder: Path) -> None:
    cv2.imwrite(str(folder / "clips" / "x.png"), np.zeros((8, 8, 3), np.uint8))
    told = run("clips", code=1).stderr
    assert "holds 3 videos (a.mp4 …) and 1 image (x.png …)" in told
    assert "folders of their own" in told
    (folder / "clips" / "x.png").unlink()
    told = run("clips", "clips/a.mp4", code=1).stderr
    assert "3 videos, which run one after another; give it alone" in told


def test_outputs_replace_no_video_of_the_batch(folder: Path) -> None:
    before = {p: p.read_bytes() for p in (folder / "clips").iterdir()}
    # clips/a.mp4 would be a.mp4's own video
    assert "--save clips/a.mp4 would overwrite" in run("clips", "--save", "clips", code=1).stderr
    told = run("clips", "--json", "clips/c.mp4", code=1).stderr
    assert "--json clips/c.mp4 would overwrite" in told
    assert {p: p.read_bytes() for p in (folder / "clips").iterdir()} == before


def test_what_is_a_batch(folder: Path) -> None:
    videos = videos_in(["clips"])
    assert videos is not None
    assert [p.name for p in videos] == list(SIZES)
    assert videos_in(["clips/a.mp4", "clips/b.mkv"]) is None
    assert videos_in(["0"]) is None
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "x.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "images" / ".hidden.mp4").touch()
    assert videos_in(["images", "clips/a.mp4"]) is None
    with pytest.raises(SourceError, match="give it alone"):
        videos_in(["images", "clips"])


def test_names_of_outputs(tmp_path: Path) -> None:
    assert video_paths(Path("o.mp4"), ["a.avi"]) == {"a.avi": Path("o.mp4")}
    assert video_paths(Path("o.mp4"), ["a.avi", "b"]) == {
        "a.avi": Path("o-a_avi.mp4"), "b": Path("o-b.mp4"),
    }  # fmt: skip
    assert video_paths(tmp_path, ["a.avi"]) == {"a.avi": tmp_path / "a.mp4"}
    # the same stem twice: the suffixes tell them apart
    assert paths_in(Path("d"), ["a.avi", "a.mkv", "x:y.mp4"], ".jsonl") == {
        "a.avi": Path("d/a_avi.jsonl"), "a.mkv": Path("d/a_mkv.jsonl"),
        "x:y.mp4": Path("d/x_y_mp4.jsonl"),
    }  # fmt: skip
    assert paths_in(Path("d"), ["x:y", "x?y"], ".mp4") == {
        "x:y": Path("d/x_y.mp4"), "x?y": Path("d/x_y-2.mp4"),
    }  # fmt: skip
    assert is_folder(Path("new"))
    assert not is_folder(Path("new.mp4"))
    assert not is_folder(Path("-"))
    assert not is_folder(Path("/dev/null"))
