"""`CompiledModel.run`: sources of all kinds to their ends, one or several, and what goes wrong."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import torchdelta
from media import clip, picture
from torchdelta import FrameError, Source, SourceError, VideoFrame

H, W = 48, 64
FRAMES = [picture(n, H, W) for n in range(5)]


@pytest.fixture(scope="module")
def fast() -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)).eval()
    return torchdelta.compile(
        model, torch.from_numpy(FRAMES[0]).permute(2, 0, 1)[None], tolerance=0.0, engine="torch"
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return clip(tmp_path / "gate.mp4", 6, H, W)


def outputs(fast: torchdelta.CompiledModel, frames: Any) -> list[torch.Tensor]:
    """Run frames in a session by hand."""
    cam = fast.session().stream("frames")
    return [cam(frame).output for frame in frames]


def same(results: Any, expected: list[torch.Tensor]) -> None:
    found = list(results)
    assert len(found) == len(expected)
    for result, output in zip(found, expected, strict=True):
        assert result.ok, result.error
        assert torch.equal(result.output, output)


def test_a_file_gives_what_its_frames_give(fast: torchdelta.CompiledModel, video: Path) -> None:
    with torchdelta.open_source(video) as source:
        frames = [*source]
    results = list(fast.run(str(video)))
    same(results, outputs(fast, frames))
    same(fast.run(video, limit=2), outputs(fast, frames[:2]))
    with torchdelta.open_source(video) as source:
        same(fast.run(source), outputs(fast, frames))
    for result, frame in zip(results, frames, strict=True):
        assert result.stream == "gate.mp4"
        assert np.array_equal(result.frame, frame.picture)
        assert result.pts_s == frame.pts_s
    assert results[-1].pts_s == pytest.approx(0.5)
    assert [r.stats.frame for r in results] == list(range(6))


def test_a_folder_of_images(fast: torchdelta.CompiledModel, tmp_path: Path) -> None:
    for n, frame in enumerate(FRAMES):
        cv2.imwrite(str(tmp_path / f"{n}.png"), frame[..., ::-1])
    results = list(fast.run(tmp_path))
    same(results, outputs(fast, FRAMES))
    assert {r.pts_s for r in results} == {None}


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(frame).permute(2, 0, 1) for frame in FRAMES]


@pytest.mark.parametrize(
    "given",
    [
        FRAMES,
        tuple(FRAMES),
        np.stack(FRAMES),
        torch.stack(tensors()),
        tensors(),
        [VideoFrame(frame, n / 10) for n, frame in enumerate(FRAMES)],
        iter(FRAMES),
        (frame for frame in FRAMES),
    ],
    ids=["list", "tuple", "array", "tensor", "tensors", "videoframes", "iterator", "generator"],
)
def test_frames_at_hand(fast: torchdelta.CompiledModel, given: Any) -> None:
    results = list(fast.run(given))
    same(results, outputs(fast, FRAMES))
    assert results[0].stream == "frames"
    times = [0, 0.1, 0.2, 0.3, 0.4] if results[0].pts_s is not None else [None] * 5
    assert [r.pts_s for r in results] == times


def test_frames_are_resized_as_the_command_line_does(fast: torchdelta.CompiledModel) -> None:
    large = [picture(n, 2 * H, 2 * W) for n in range(3)]
    small = [cv2.resize(frame, (W, H), interpolation=cv2.INTER_AREA) for frame in large]
    expected = outputs(fast, small)
    same(fast.run(large, size=(H, W)), expected)
    same(fast.run([torch.from_numpy(f).permute(2, 0, 1) for f in large], size=(H, W)), expected)
    for result, frame in zip(fast.run(large, size=(H, W)), small, strict=True):
        assert np.array_equal(result.frame, frame)
    # an odd one among them is refused by itself
    odd = [large[0], np.zeros((8, 8, 3), np.complex64), "picture", large[1]]
    results = list(fast.run(odd, size=(H, W)))
    assert [r.ok for r in results] == [True, False, False, True]
    assert "complex64 [8, 8, 3] cannot be resized to 48x64" in str(results[1].error)
    assert "frame is a str and no picture" in str(results[2].error)


def test_frames_of_another_size_get_a_plan(fast: torchdelta.CompiledModel) -> None:
    frames = [FRAMES[0], FRAMES[1], picture(0, 32, 40), picture(1, 32, 40), FRAMES[2]]
    with pytest.warns(UserWarning, match="frames: frames are 32x40 from here on, no longer 48x64"):
        results = list(fast.run(frames))
    assert [tuple(r.output.shape[2:]) for r in results] == [
        (24, 32), (24, 32), (16, 20), (16, 20), (24, 32)
    ]  # fmt: skip
    assert [r.stats.reason for r in results] == [
        "first frame", None, "first frame", None, "first frame"
    ]  # fmt: skip


def test_a_model_of_one_size_gets_its_size() -> None:
    model = nn.Conv2d(3, 2, 3, 1, 1).eval()
    fixed = torchdelta.compile(
        model, torch.zeros(1, 3, 24, 32).byte(), fixed_size=True, engine="torch"
    )
    assert {tuple(r.output.shape) for r in fixed.run(FRAMES)} == {(1, 2, 24, 32)}
    with pytest.raises(FrameError, match="compiled with fixed_size=True"):
        fixed.run(FRAMES, size=(48, 64))


def test_a_refused_frame_does_not_end_the_run(fast: torchdelta.CompiledModel) -> None:
    results = list(fast.run([FRAMES[0], None, FRAMES[1][..., :2], FRAMES[1]]))
    assert [r.ok for r in results] == [True, False, False, True]
    assert "frame is a NoneType" in str(results[1].error)
    assert "frame has 2 channels, the network takes 3" in str(results[2].error)
    assert results[2].frame.shape == (H, W, 2)
    assert torch.equal(results[3].output, outputs(fast, FRAMES[:2])[1])


def test_several_sources_are_streams_of_one_session(
    fast: torchdelta.CompiledModel, video: Path
) -> None:
    with torchdelta.open_source(video) as source:
        frames = [*source]
    found: dict[str, list[torchdelta.Result]] = {"gate": [], "yard": []}
    order = []
    for name, result in fast.run({"gate": video, "yard": FRAMES[:3]}):
        found[name].append(result)
        order.append(name)
        assert result.stream == name
    assert order == ["gate", "yard"] * 3 + ["gate"] * 3
    same(found["gate"], outputs(fast, frames))
    same(found["yard"], outputs(fast, FRAMES[:3]))
    names = [name for name, _ in fast.run([video, video, np.stack(FRAMES)], limit=1)]
    assert names == ["gate.mp4", "gate.mp4-2", "frames"]
    # a list of one is still a list
    assert [name for name, _ in fast.run([video], limit=2)] == ["gate.mp4"] * 2


def test_a_source_that_is_damaged_ends_and_the_others_go_on(
    fast: torchdelta.CompiledModel, video: Path, tmp_path: Path
) -> None:
    whole = clip(tmp_path / "long.ts", 20, H, W)
    damaged = tmp_path / "cut.ts"
    data = whole.read_bytes()
    damaged.write_bytes(data[: len(data) * 2 // 3 // 188 * 188 - 5])
    results = list(fast.run(damaged))
    good = len(results) - 1
    assert 0 < good < 20
    assert all(r.ok for r in results[:-1])
    assert isinstance(results[-1].error, SourceError)
    assert f"damaged at frame {good}" in str(results[-1].error)
    with pytest.raises(SourceError, match="damaged at frame"):
        results[-1].unwrap()
    by_name: dict[str, int] = {"cut": 0, "long": 0}
    for name, result in fast.run({"cut": damaged, "long": whole}):
        by_name[name] += result.ok
    assert by_name == {"cut": good, "long": 20}
    with pytest.warns(UserWarning, match="cut.ts"):
        skipped = list(fast.run(damaged, skip_damaged=True))
    assert all(r.ok for r in skipped)


def made(frames: list[Any], ended: list[bool]) -> Iterator[Any]:
    try:
        yield from frames
    finally:
        ended.append(True)


def test_sources_are_closed_whatever_ends_the_run(
    fast: torchdelta.CompiledModel, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close = Source.close

    def spy(self: Source) -> None:
        closed.append(self.name)
        close(self)

    monkeypatch.setattr(Source, "close", spy)
    list(fast.run(video))
    assert closed == ["gate.mp4"]
    for _ in fast.run([video, video]):
        break
    gc.collect()
    assert closed == ["gate.mp4"] * 3
    with pytest.raises(ZeroDivisionError):
        sum(result.stats.frame / 0 for result in fast.run(video))
    gc.collect()
    assert closed == ["gate.mp4"] * 4
    # what fails at the call leaves nothing open
    with pytest.raises(SourceError, match=r"none\.mp4: no such file"):
        fast.run([video, "none.mp4"])
    assert closed == ["gate.mp4"] * 5
    with pytest.raises(ValueError, match="motion is 'sideways'"):
        fast.run(video, motion="sideways")  # type: ignore[call-overload]
    assert closed == ["gate.mp4"] * 6
    # what the caller opened, the caller closes
    with torchdelta.open_source(video) as source:
        list(fast.run(source, limit=1))
        assert len(closed) == 6
        next(source)


def test_session_options_reach_the_session(fast: torchdelta.CompiledModel) -> None:
    still = [FRAMES[0], FRAMES[0].copy()]
    still[1][20:22, 20:22] ^= 2
    assert [r.stats.changed_input > 0 for r in fast.run(still)] == [True, True]
    assert [r.stats.changed_input > 0 for r in fast.run(still, tolerance=0.5)] == [True, False]
    followed = list(fast.run(FRAMES, motion="features"))
    assert all(r.aligned is not None for r in followed)
    assert all(r.active is None for r in fast.run(FRAMES, record=False))
    assert all(r.active is not None for r in fast.run(FRAMES))


def test_deep_pictures_come_in_the_model_s_range(tmp_path: Path) -> None:
    model = nn.Conv2d(1, 2, 3, 1, 1).eval()
    deep = [np.random.default_rng(n).integers(1000, 3000, (24, 32), np.uint16) for n in range(3)]
    for n, pixels in enumerate(deep):
        cv2.imwrite(str(tmp_path / f"{n}.png"), pixels)
    example = torch.from_numpy(deep[0].astype(np.float32))[None, None]
    fast = torchdelta.compile(model, example, input_range=(1000, 3000), tolerance=0, engine="torch")
    same(fast.run(tmp_path), outputs(fast, [d.astype(np.float32) for d in deep]))


BAD = {
    "nothing": (None, "a source is a NoneType; a source is a file's"),
    "number": (3.5, "a source is a float"),
    "bytes": (b"clip.mp4", "a source is a bytes"),
    "frame": (FRAMES[0], r"a source is a ndarray of shape \[48, 64, 3\], a single frame"),
    "tensor": (torch.zeros(3, 4, 4), r"a source is a Tensor of shape \[3, 4, 4\], a single frame"),
    "empty": ([], "no source was given"),
    "no sources": ({}, "no source was given"),
    "no name": ({3: FRAMES}, "sources are named by a str, got 3"),
    "no frames": (iter(()), "frames: holds no frame"),
    "no pictures": (iter(["a", "b"]), "frames: its first frame is a str, expected a numpy array"),
    "missing": ("missing.mp4", r"missing\.mp4: no such file or folder"),
    "url": ("rtsp://gate", "rtsp://gate: a URL"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_source_is_refused_at_the_call(
    fast: torchdelta.CompiledModel, kind: str
) -> None:
    given, message = BAD[kind]
    with pytest.raises(SourceError, match=message):
        fast.run(given)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 3}, r"size is 3, expected two whole numbers \(h, w\)"),
        ({"size": (0, 4)}, r"size is \(0, 4\)"),
        ({"limit": 0}, "limit is 0, expected a whole number"),
        ({"motion": "given"}, 'motion="given" takes homographies'),
    ],
)
def test_options_are_checked_at_the_call(
    fast: torchdelta.CompiledModel, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fast.run(FRAMES, **option)


def test_sources_of_different_sizes_need_one(fast: torchdelta.CompiledModel) -> None:
    small = [picture(0, 32, 40)]
    with pytest.raises(FrameError, match=r"a is 48x64, b is 32x40 .*size=\(h, w\)"):
        fast.run({"a": FRAMES, "b": small})
    assert all(r.ok for _, r in fast.run({"a": FRAMES, "b": small}, size=(H, W)))


def test_progress_goes_to_standard_error(
    fast: torchdelta.CompiledModel, video: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from torchdelta.report import progress

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(fast.run([video, FRAMES], progress=True))
    said = capsys.readouterr()
    assert said.out == ""
    assert "11/11 frames" in said.err
    assert "changed" in said.err
    list(fast.run(video))
    assert capsys.readouterr() == ("", "")
