"""What `torchdelta run --compare` says: agreement of answers, errors, and speed-ups in doubt."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from torchdelta.cli.app import app
from torchdelta.cli.compare import Comparison
from torchdelta.cli.track import Track, agreements, movements, speedup_doubts, summary
from torchdelta.quality.compare import ClassAgreement
from torchdelta.runtime.stats import FrameStats
from torchdelta.tasks import Agreement

NETS = """
import torch
from torch import nn


class Brightness(nn.Module):
    "Scores of three classes, by which colour is brightest."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[..., None, None] * 6)
            self.conv.bias.zero_()

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def classify():
    return Brightness()
classify.preprocess = dict(labels=["red", "green", "blue"])


def pixels():
    return Brightness().conv
pixels.preprocess = classify.preprocess


def picture():
    net = Brightness().conv
    with torch.no_grad():
        net.weight /= 6
    return net


def untrained():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with networks, and frames that turn from red to green."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agree_nets.py").write_text(NETS)
    (tmp_path / "frames").mkdir()
    for n, (green, blue) in enumerate(
        ((40, 20), (44, 20), (120, 20), (199, 20), (203, 20), (250, 90))
    ):
        picture = np.full((32, 48, 3), (blue, green, 200), np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / f"{n}.png"), picture)
    yield tmp_path
    sys.modules.pop("agree_nets", None)


def run(*args: str) -> tuple[str, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, ["run", "frames", "--compare", "--json", "o.jsonl", *args])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout, [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]


def test_classes_agree_but_for_near_ties() -> None:
    """At tolerance 0 all agrees; a coarse gate keeps the frame of before for small changes."""
    said, lines = run("--model", "agree_nets:classify", "--task", "classify", "--tolerance", "0")
    # red and green are nearly alike in the frames 3 and 4
    ties = [line["agreement"]["near_tie"] for line in lines]
    assert ties == [False, False, False, True, False, False]
    assert all(line["agreement"]["same_class"] for line in lines)
    assert max(line["agreement"]["distance"] for line in lines) < 1e-5
    assert "same class as dense: 4 of 4 frames (1 near-tie left out)" in said
    assert "class probabilities differ by 0.000" in said
    assert "for classes see the agreement above" in said
    assert [line["dense_result"]["label"] for line in lines] == ["red"] * 4 + ["green"] * 2
    assert all(line["dense_result"]["top1"] == line["result"]["top1"] for line in lines)

    said, lines = run("--model", "agree_nets:classify", "--task", "classify", "--tolerance", "0.1")
    # frame 4 is too near to frame 3 for the gate (20 levels at this tolerance), yet it is green
    assert not lines[4]["agreement"]["same_class"]
    assert (lines[4]["result"]["label"], lines[4]["dense_result"]["label"]) == ("red", "green")
    assert 0.01 < lines[4]["agreement"]["distance"] < 0.1
    assert "same class as dense: 3 of 4 frames (1 near-tie left out)" in said


def test_pixels_and_pictures_agree() -> None:
    said, lines = run("--model", "agree_nets:pixels", "--task", "segment", "--tolerance", "0.1")
    same = [line["agreement"]["same_pixels"] for line in lines]
    assert same == [1, 1, 1, 1, 0, 1]
    assert lines[4]["dense_result"] == {"pixel_shares": {"green": 1}}
    assert lines[4]["result"] == {"pixel_shares": {"red": 1}}
    assert "same class as dense on 80.0% of the pixels (worst frame 0.0%)" in said

    said, lines = run("--model", "agree_nets:picture", "--task", "image", "--tolerance", "0.1")
    psnr_db = [line["agreement"]["psnr_db"] for line in lines]
    # 4 of 255 levels in one of three channels
    assert psnr_db[1] == pytest.approx(10 * np.log10(3 * (255 / 4) ** 2), abs=0.01)
    assert min(psnr_db[0], psnr_db[2], psnr_db[5]) > 100
    assert f"dB PSNR against dense (worst frame {psnr_db[1]:.1f})" in said


def test_random_weights_have_no_agreement() -> None:
    said, lines = run("--model", "agree_nets:untrained", "--task", "classify")
    assert "same class" not in said
    assert "the weights are random, so their classes mean nothing" in said
    assert all(line["agreement"] is None and line["error"] is not None for line in lines)


def test_without_a_task_only_errors() -> None:
    said, lines = run("--model", "agree_nets:classify")
    assert "relative L2 against dense" in said
    assert "--task says" in said
    assert all(line["agreement"] is None and line["dense_result"] is None for line in lines)


def track(
    ms: list[float], dense_ms: list[float], share: list[float], agreement: Agreement | None = None
) -> Track:
    """A stream with a first frame and these frames after it."""
    made = Track("clip.mp4")
    made.add(FrameStats(0, True, 1, 1, 1, 50, "first frame"), None)
    for n, (own, dense, part) in enumerate(zip(ms, dense_ms, share, strict=True)):
        comparison = Comparison(dense, 0.01, 0.01, None, agreement)
        made.add(FrameStats(n + 1, False, part, part, part, own), comparison)
    return made


def test_a_speedup_in_doubt_is_told_with_its_reason() -> None:
    assert speedup_doubts(track([10] * 5, [30] * 5, [0.4] * 5)) is None
    busy = speedup_doubts(track([10] * 5, [427.7] * 5, [0.59] * 5))
    assert busy is not None
    assert "the speed-up 42.77x is not to be trusted" in busy
    assert "59.0% accounts for 1.69x" in busy
    assert "torchdelta bench" in busy
    restless = speedup_doubts(track([10] * 5, [30, 30, 100, 100, 100], [0.1] * 5))
    assert restless is not None
    assert "between 30 and 100 ms" in restless
    assert speedup_doubts(Track("no frame")) is None


def test_a_speedup_of_mostly_quiet_frames_says_what_it_is_over_all() -> None:
    said = speedup_doubts(track([1, 1, 1, 100, 100], [100] * 5, [0, 0, 0, 1, 1]))
    assert said is not None
    assert "trusted" not in said
    assert f"over all frames together the speed-up is {500 / 203:.2f}x" in said


def test_agreement_is_over_the_frames_after_the_first() -> None:
    one = Agreement(classes=ClassAgreement(same=True, near_tie=False, distance=0.05))
    said = agreements(track([1] * 3, [2] * 3, [0.1] * 3, one))
    assert said == (
        "clip.mp4: same class as dense: 3 of 3 frames; class probabilities differ by 0.050"
    )
    assert agreements(track([1], [2], [0.1])) is None


def test_streams_share_a_turn_and_the_head_says_so() -> None:
    one = track([1], [2], [0.1])
    assert summary([one], compared=True).title is None
    shared = summary([one, one], compared=False)
    assert shared.title == "ms: of a turn, which the 2 streams share, over their number"
    # one after another
    assert summary([one, one], compared=False, together=False).title is None


@pytest.mark.parametrize(
    ("corners", "missing", "why"),
    [
        (1, 0, "the vectors of 1 did not fit the picture"),
        (3, 3, "3 came without vectors"),
        (5, 2, "2 came without vectors and the vectors of 3 did not fit the picture"),
    ],
)
def test_where_the_motion_came_from(corners: int, missing: int, why: str) -> None:
    made = Track("pan", moves=1, estimated=29, by_corners=corners, no_vectors=missing)
    said = movements(made)
    assert said is not None
    assert "the window moved with 1 frame;" in said
    assert f"motion vectors with {29 - corners} of 29 frames" in said
    assert f"from corners in the picture with the other {corners} ({why})" in said
