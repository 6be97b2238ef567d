"""`torchdelta run` on real files: results, figures, several sources, moving cameras."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cli_nets import H, W, call, clip, entered, frame, images, pictures, records
from torchdelta.cli.compare import Comparison
from torchdelta.cli.track import Track, movements, summary
from torchdelta.runtime.placement import watch
from torchdelta.runtime.stats import FrameStats
from torchdelta.video.board import Board
from torchdelta.video.sink import VideoWriter

KEYS = [
    "stream",
    "frame",
    "pts_s",
    "ms",
    "dense_ms",
    "changed_input",
    "mac_share",
    "error",
    "layer_error",
    "reason",
    "motion",
    "result",
    "dense_result",
    "agreement",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path, monkeypatch):
        yield tmp_path


def even(size: tuple[int, int]) -> tuple[int, int]:
    """The size of a video of such pictures."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def test_run_writes_one_line_and_one_picture_per_frame(folder: Path) -> None:
    source = clip(folder / "a.mp4", 12)
    result = call(
        "run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4",
        "--limit", "7",
    )  # fmt: skip
    lines = records()
    assert [list(line) for line in lines] == [KEYS] * 7
    assert [line["frame"] for line in lines] == list(range(7))
    assert {line["stream"] for line in lines} == {"a.mp4"}
    assert lines[0]["mac_share"] == 1.0
    assert all(0 < line["mac_share"] < 1 for line in lines[1:])
    assert all(line["ms"] > 0 and 0 <= line["changed_input"] <= 1 for line in lines)
    for key in ("dense_ms", "error", "layer_error", "result", "dense_result", "agreement"):
        assert all(line[key] is None for line in lines)
    shown = pictures("out.mp4")
    assert len(shown) == 7
    assert shown[0].shape == (*even(Board((H, W), 2).size), 3)
    assert "weights: random (seed 0), batch norms set on the run's first frames" in result.stderr
    assert "a.mp4" in result.stdout
    assert "wrote out.mp4" in result.stdout


def test_compare_measures_both_errors(folder: Path) -> None:
    source = images(folder / "a", 6)
    model = ["--model", "nets:Parts", "--compare", "--json", "out.jsonl"]
    result = call("run", source, *model, "--tolerance", "0")
    for line in records():
        assert line["dense_ms"] > 0
        assert line["error"] < 1e-5
        assert line["layer_error"] < 1e-5
    assert "speed-up" in result.stdout
    call("run", source, *model, "--tolerance", "0.2")
    assert max(line["layer_error"] for line in records()) > 1e-5


def test_new_references_count_in_the_summary() -> None:
    """Frames that are computed whole after the first one: their time and their work are real."""
    track = Track("pan")
    kinds = ["first frame", None, "scene cut", None, "scale"]
    for n, reason in enumerate(kinds):
        ms, share = (60.0, 1.5) if reason else (10.0, 0.1)
        stats = FrameStats(n, reason is not None, share, share, share, ms, reason)
        track.add(stats, Comparison(dense_ms=40.0, error=0.02, layer_error=0.01))
    assert list(track.ms) == [10, 60, 10, 60]
    assert track.first_ms == 60
    table = summary([track], compared=True)
    cells = {str(c.header).replace("-\n", "").replace("\n", " "): next(iter(c.cells))
             for c in table.columns}  # fmt: skip
    assert cells["median ms"] == "35.0"
    assert cells["MAC share"] == cells["changed input"] == "80.0%"
    # of medians
    assert cells["speedup"] == f"{40 / 35:.2f}x"
    assert "1 x scene cut; 1 x scale" in str(movements(track))


def test_no_layer_gate_error_without_layer_gates(folder: Path) -> None:
    """One convolution that only the caller reads: nothing but the input gate can err."""
    Path("single.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(3, 2, 3)\n")
    source = images(folder / "a", 6)
    call(
        "run", source, "--model", "single:build", "--compare", "--json", "out.jsonl",
        "--tolerance", "0.3",
    )  # fmt: skip
    lines = records()
    assert max(line["layer_error"] for line in lines) < 1e-5
    assert all(line["error"] >= line["layer_error"] - 1e-6 for line in lines)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("classify", "nets:classify"),
        ("segment", "nets:segment"),
        ("segment", "nets:segment_small"),
        ("segment", "nets:one_class"),
        ("segment", "nets:Parts"),
        ("image", "nets:denoise"),
        ("image", "nets:picture"),
        ("none", "nets:Parts"),
    ],
)
def test_results_by_task(task: str, model: str, folder: Path) -> None:
    source = images(folder / "a", 3, 33, 50)
    call(
        "run", source, "--model", model, "--task", task, "--json", "out.jsonl",
        "--save", "out.mp4",
    )  # fmt: skip
    assert len(pictures("out.mp4")) == 3
    for line in records():
        result = line["result"]
        match task:
            case "classify":
                assert result["label"] == ["ant", "bee", "cat", "dog", "elk"][result["top1"]]
                assert 0.2 <= result["score"] <= 1
            case "segment":
                assert sum(result["pixel_shares"].values()) == pytest.approx(1)
            case "image":
                assert isinstance(result["mean"], float)
            case _:
                assert result is None


def test_task_that_does_not_fit_the_output(folder: Path) -> None:
    source = images(folder / "a", 2)
    wrong = call("run", source, "--model", "nets:segment", "--task", "classify", code=1)
    assert "task classify needs an output of [1, classes], this model gives" in wrong.stderr
    call("run", source, "--model", "nets:classify", "--task", "segment", code=1)
    call("run", source, "--model", "nets:classify", "--task", "image", code=1)


def test_failed_run_leaves_older_outputs_alone(folder: Path) -> None:
    source = images(folder / "a", 2)
    kept = [clip(folder / "out.mp4", 3), "out.jsonl"]
    Path("out.jsonl").write_text("older\n")
    before = [Path(name).read_bytes() for name in kept]
    args = ["run", source, "--json", "out.jsonl", "--save", "out.mp4", "--model"]
    call(*args, "nets:segment", "--task", "classify", code=1)
    call(*args, "nets:branches", code=1)
    assert [Path(name).read_bytes() for name in kept] == before
    call(*args, "nets:segment")
    assert (len(records()), len(pictures("out.mp4"))) == (2, 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.mp4", "--save", "a.mp4"], "--save a.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "--json", "./x/../a.mp4"], "would overwrite the source a.mp4"),
        (["a.mp4", "--save", "link.mp4"], "--save link.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "--save", "hard.mp4"], "--save hard.mp4 would overwrite the source a.mp4"),
        (["a.mp4", "a-a_mp4.mp4", "--save", "a.mp4"], "overwrite the source a-a_mp4.mp4"),
        (["frames", "--json", "frames/000.png"], "would overwrite the source frames"),
        (["a.mp4", "--weights", "w.pth", "--json", "w.pth"], "overwrite the weights w.pth"),
        (["a.mp4", "--profile", "p.json", "--json", "p.json"], "overwrite the profile p.json"),
        (["a.mp4", "--model", "net.pt2", "--json", "net.pt2"], "overwrite the model net.pt2"),
        (["a.mp4", "--save", "new.mp4", "--json", "x/../new.mp4"], "overwrite --save new.mp4"),
    ],
)
def test_outputs_never_replace_an_input(args: list[str], said: str, folder: Path) -> None:
    clip(folder / "a.mp4", 2)
    clip(folder / "a-a_mp4.mp4", 2)
    images(folder / "frames", 2)
    Path("link.mp4").symlink_to("a.mp4")
    Path("hard.mp4").hardlink_to("a.mp4")
    Path("x").mkdir()
    Path("p.json").write_text("{}")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1)).eval()
    torch.save(net.state_dict(), "w.pth")
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, H, W),)), folder / "net.pt2")
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.is_file() and p.suffix != ".pyc"}
    model = [] if "--model" in args else ["--model", "plain:build"]
    Path("plain.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))\n"
    )
    result = call("run", *args, *model, code=1)
    assert said in result.stderr
    assert {p: p.read_bytes() for p in before} == before
    assert not Path("new.mp4").exists()


def test_several_sources_are_streams_that_end_on_their_own(folder: Path) -> None:
    a, b = images(folder / "a", 6), clip(folder / "b.mp4", 3)
    args = ["--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4", "--compare"]
    result = call("run", a, b, a, *args)
    lines = records()
    frames = {
        name: [line["frame"] for line in lines if line["stream"] == name]
        for name in ("a", "b.mp4", "a-2")
    }
    assert frames == {"a": list(range(6)), "b.mp4": list(range(3)), "a-2": list(range(6))}
    twins = [[x["mac_share"] for x in lines if x["stream"] == name] for name in ("a", "a-2")]
    assert twins[0] == twins[1]
    assert twins[0][0] == 1.0
    assert [len(pictures(f"out-{n}.mp4")) for n in ("a", "b_mp4", "a-2")] == [6, 3, 6]
    assert not Path("out.mp4").exists()
    assert "b.mp4" in result.stdout
    call("run", a, b, *args, "--limit", "2")
    assert len(records()) == 4


def test_sources_of_different_size_need_a_size(folder: Path) -> None:
    a, b = images(folder / "a", 2), images(folder / "b", 2, 30, 40)
    result = call("run", a, b, "--model", "nets:segment", code=1)
    assert "a is 48x64, b is 30x40" in result.stderr
    assert "--size" in result.stderr
    call("run", a, b, "--model", "nets:segment", "--size", "32x40", "--save", "out.mp4")
    assert pictures("out-b.mp4")[0].shape == (*even(Board((32, 40), 2).size), 3)


def test_a_source_that_changes_its_size_goes_on(folder: Path) -> None:
    source = Path(images(folder / "a", 9))
    for i in (3, 4, 5, 6):
        cv2.imwrite(str(source / f"{i:03}.png"), frame(i, 32, 80)[..., ::-1])
    args = ("run", str(source), "--model", "nets:segment", "--task", "segment", "--compare")
    for motion in ("none", "features"):
        result = call(*args, "--json", "out.jsonl", "--save", "out.mp4", "--motion", motion)
        lines = records()
        assert [n for n, line in enumerate(lines) if line["changed_input"] == 1] == [0, 3, 7]
        assert result.stderr.count("frames are 32x80 from here on, no longer 48x64") == 1
        # a size that was seen before is no news
        assert result.stderr.count("from here on") == 1
        assert max(line["layer_error"] for line in lines) < 0.1
        assert "computed whole after the first frame: 2 x first frame" in result.stdout
        shown = pictures("out.mp4")
        # with --compare dense has a panel too
        size = Board((48, 64), 3 if motion == "none" else 4).size
        assert {picture.shape for picture in shown} == {(*even(size), 3)}
        assert len(shown) == 9
    # with a size, frames are resized instead
    result = call(*args, "--size", "48x64", "--json", "out.jsonl")
    assert "from here on" not in result.stderr
    assert [line["changed_input"] == 1 for line in records()] == [True] + [False] * 8


def pan(path: Path, count: int, step: tuple[int, int], h: int = 96, w: int = 128) -> str:
    """A camera that moves over a still texture."""
    rng = np.random.default_rng(3)
    texture = cv2.resize(
        rng.integers(60, 190, (24, 24, 3), dtype=np.uint8),
        (420, 420),
        interpolation=cv2.INTER_CUBIC,
    )
    with VideoWriter(path, 10, (h, w)) as writer:
        for n in range(count):
            y, x = 150 + n * step[0], 20 + n * step[1]
            writer.write(texture[y : y + h, x : x + w])
    return str(path)


@pytest.mark.parametrize("motion", ["features", "codec", "translation", "auto"])
def test_a_moving_camera_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, motion: str
) -> None:
    # "auto" would find that so small a network is computed quicker than a motion is estimated
    monkeypatch.setattr(watch.Watch, "_saves_time", lambda self, share: True)
    monkeypatch.setattr(watch, "QUICKEST_MS", 0.0)
    monkeypatch.setattr(watch, "HOPELESS", float("inf"))
    monkeypatch.setattr(watch.Watch, "_may_look", lambda self: True)
    monkeypatch.setattr(watch.Watch, "_saves_nothing", lambda self: False)
    source = pan(folder / "pan.mp4", 24, (1, 5))
    args = ("run", source, "--model", "nets:segment", "--task", "segment", "--compare")
    call(*args, "--json", "still.jsonl")
    # with "keep", what lies at the edges differs from the dense network's
    args = (*args, "--motion", motion, "--border", "exact")
    result = call(*args, "--json", "out.jsonl", "--save", "out.mp4")
    still, lines = records("still.jsonl"), records()
    assert list(lines[0]) == KEYS
    assert all(line["motion"] is None for line in still)
    followed = [line["motion"] is not None for line in lines]
    start = followed.index(True)
    assert all(followed[start:])
    assert (start == 0) == (motion != "auto")
    assert lines[start]["reason"] == ("the camera moves" if start else "first frame")
    share = {
        name: np.mean([line["mac_share"] for line in some[start + 1 :]])
        for name, some in (("still", still), ("followed", lines))
    }
    assert share["followed"] < 0.6 * share["still"]
    origins = [line["motion"]["origin"] for line in lines[start:]]
    assert origins[-1][1] >= origins[0][1] + 40
    homography = np.array(lines[-1]["motion"]["homography"])
    assert np.allclose(homography[:2, 2], (5, 1), atol=0.3)
    assert max(line["layer_error"] for line in lines) < 0.1
    assert max(line["error"] for line in lines) < 0.2
    # the classes are the frame's: nearly those of the still camera
    shares = [line["result"]["pixel_shares"] for line in (still[-1], lines[-1])]
    assert shares[0].keys() == shares[1].keys()
    assert all(abs(shares[0][k] - shares[1][k]) < 0.1 for k in shares[0])
    # "auto" makes them later than the others do
    assert result.stderr.count("cameras are followed on windows of") == 1
    estimators = {line["motion"]["estimator"] for line in lines[start + 1 :]}
    by_corners = sum(line["motion"]["fallback"] is not None for line in lines[start:])
    if motion in ("features", "translation"):
        assert estimators == {motion}
    else:
        assert "codec" in estimators
    told = re.search(r"from corners in the picture with the other (\d+)", result.stdout)
    assert (int(told[1]) if told else 0) == by_corners
    moved = re.search(r"the window moved with (\d+) frames", result.stdout)
    assert moved
    assert int(moved[1]) >= 5
    shown = pictures("out.mp4")
    assert len(shown) == 24
    assert shown[0].shape == (*even(Board((96, 128), 4).size), 3)


@pytest.mark.parametrize("border", ["keep", "exact"])
def test_following_a_real_clip(folder: Path, data: Path, border: str) -> None:
    source = str(data / "clips/moving/rollercoaster_pan_960x540.mp4")
    args = ("run", source, "--model", "nets:segment_small", "--size", "144x256")
    result = call(
        *args, "--limit", "12", "--motion", "codec", "--border", border, "--task", "segment",
        "--json", "out.jsonl", "--save", "out.mp4",
    )  # fmt: skip
    lines = records()
    assert [line["frame"] for line in lines] == list(range(12))
    assert lines[-1]["motion"]["confidence"] > 0.5
    assert "the window moved" in result.stdout
    assert len(pictures("out.mp4")) == 12


def test_archive_takes_its_own_size(folder: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 32, 40),)), folder / "net.pt2")
    source = images(folder / "a", 3)
    result = call("run", source, "--model", "net.pt2", "--json", "out.jsonl", "--compare")
    assert "32x40" in result.stderr
    assert len(records()) == 3
    call("run", source, "--model", "net.pt2", "--size", "48x64", code=1)


def test_other_dtype_and_profile_of_nothing(folder: Path) -> None:
    source = images(folder / "a", 3)
    args = ["run", source, "--model", "nets:segment"]
    call(*args, "--dtype", "bf16", "--compare", "--json", "out.jsonl", "--tolerance", "0")
    assert max(line["error"] for line in records()) < 2e-2
    Path("bad.json").write_text("{")
    assert "bad.json" in call(*args, "--profile", "bad.json", code=1).stderr
    call(*args, "--profile", "none.json", code=1)
