"""`bench`: what it says of quality, of being slower, and where the time goes."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from support import enter_with_module, load_file, threads
from torchdelta.bench import report
from torchdelta.bench.measure import SAMPLES, Times
from torchdelta.bench.operations import by_operation, dense_line
from torchdelta.bench.quality import Quality
from torchdelta.cli.app import app
from torchdelta.cli.bench import BenchOptions
from torchdelta.cli.commands import bench as command_line

H, W, FRAMES = 24, 32, 7
NETS = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.norm = nn.LayerNorm(8)
        self.last, self.pool = nn.Conv2d(8, 5, 3, 2, 1), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.pool(self.last(x)).flatten(1)


def classify():
    return Net()


class Film(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.film = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.film(self.first(x).unsqueeze(2)).squeeze(2)


def film():
    return Film()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    enter_with_module(monkeypatch, tmp_path, "quality_nets", NETS)
    Path("clip").mkdir()
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    for t in range(FRAMES):
        frame = still.copy()
        frame[5:12, 2 * t : 2 * t + 8] = 40 * t
        cv2.imwrite(f"clip/{t}.png", frame)
    with threads(torch.get_num_threads()):
        yield tmp_path


def call(*args: str) -> Result:
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == 0, result.output
    return result


def test_classes_leave_near_ties_out() -> None:
    quality = Quality(3, None)
    clear, tie = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[2.0, 2.01, 0.0]])
    for mine, dense in (
        (clear, clear),
        (clear.roll(1, 1), clear),
        (tie.roll(1, 1), tie),
        (tie, tie),
    ):
        quality.add(mine, dense, dense, (H, W))
    found = quality.summary()
    assert found is not None
    classes = found["classes"]
    assert (classes["same"], classes["clear"], classes["near_ties"]) == (1, 2, 2)
    assert classes["agreement"] == 0.5
    p, q = clear.softmax(1), clear.roll(1, 1).softmax(1)
    worst = float((p - q).abs().sum()) / 2
    assert classes["variation"]["worst"] == pytest.approx(worst)
    assert found["psnr_db"] is found["pixel_agreement"] is None
    assert Quality(3, None).summary() is None


def test_a_map_of_the_frames_size_is_classes_or_a_picture() -> None:
    scores = torch.rand(1, 4, H, W)
    other = scores.clone()
    other[:, :, 0] = scores[:, [1, 2, 3, 0], 0]
    quality = Quality(3, None)
    quality.add(other, scores, scores, (H, W))
    found = quality.summary()
    assert found is not None
    assert found["pixel_agreement"]["worst"] == pytest.approx(1 - 1 / H)
    assert found["psnr_db"] is None
    quality = Quality(1, 1.0)
    picture = torch.rand(1, 1, H, W)
    quality.add(picture + 0.1, picture, picture, (H, W))
    found = quality.summary()
    assert found is not None
    assert found["psnr_db"]["worst"] == pytest.approx(20.0, abs=1e-3)
    assert found["psnr_peak"] == "range of the input"
    assert found["pixel_agreement"] is found["classes"] is None


def test_errors_of_every_output() -> None:
    quality = Quality(3, None)
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    quality.add(logits, logits, logits, (H, W))
    quality.add(logits, torch.tensor([[4.0, 3.0, 0.0]]), 2 * logits, (H, W))
    found = quality.summary()
    assert found is not None
    assert found["layer_error"] == {"mean": 0.25, "worst": 0.5}
    assert found["outputs"]["output"]["error"] == found["error"]
    assert found["frames"] == 2


def test_random_weights_decide_nothing() -> None:
    quality = Quality(3, None, trained=False)
    for dense in (torch.rand(1, 5), torch.rand(1, 4, H, W)):
        quality.add(dense, dense, dense, (H, W))
    found = quality.summary()
    assert found is not None
    assert found["classes"] is found["pixel_agreement"] is None


def step(kind: str, ms: float | None, dense: bool = False, macs: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "dense": dense, "ms": ms, "mac_share": macs}


def test_steps_add_up_by_operation() -> None:
    sums = by_operation(
        [step("conv2d", 2.0, macs=0.5), step("permute", 3.0, True), step("permute", 1.0, True),
         step("layer_norm", 5.0, True), step("conv2d", 1.0, macs=0.25)]
    )  # fmt: skip
    assert [(one["op"], one["steps"], one["ms"]) for one in sums] == [
        ("layer_norm", 1, 5.0), ("permute", 2, 4.0), ("conv2d", 2, 3.0),
    ]  # fmt: skip
    assert sums[-1]["mac_share"] == 0.75
    assert dense_line(sums) == "dense steps 9.0 of 12.0 ms: 3 steps (layer_norm 5.0, permute 4.0)"
    assert dense_line(by_operation([step("conv2d", 2.0)])) is None
    assert by_operation([step("conv2d", None)])[0]["ms"] is None


def lines_of(times: Times) -> str:
    record = {
        **report.figures(times, by_median=False), "active": None, "quality": None, "prepared": True,
        "following": None,
    }  # fmt: skip
    return "\n".join(report._result_lines(record))


def test_slower_is_said_in_words() -> None:
    ours = Times(ours_ms=[4.0, 4.0], mac_share=[0.5, 0.5], changed_input=[0.1, 0.1], first_ms=1.0)
    ours.peers_ms = {"torch": [2.0, 2.0], "compile": [1.0, 1.0], "openvino": [9.0, 9.0]}
    text = lines_of(ours)
    assert "slower than torch, compile: ours takes 4.00 times as long as compile" in text
    ours.peers_ms = {"torch": [8.0, 8.0]}
    assert "slower" not in lines_of(ours)


def test_a_speedup_that_work_does_not_explain_is_doubted() -> None:
    times = Times(ours_ms=[1.0] * 4, mac_share=[0.5] * 4, changed_input=[0.1] * 4)
    times.peers_ms = {"torch": [20.0] * 4}
    (note,) = report.doubtful(report.figures(times, by_median=False), times)
    assert note.startswith("the speed-up is not to be trusted: ")
    times.peers_ms = {"torch": [2.0] * 4}
    assert report.doubtful(report.figures(times, by_median=False), times) == []
    times.peers_ms = {}
    assert report.doubtful(report.figures(times, by_median=False), times) == []


def test_sampled_frames_and_steps_of_a_clip(folder: Path) -> None:
    net = "quality_nets:classify"
    torch.manual_seed(0)
    torch.save(load_file(folder / "quality_nets.py").classify().state_dict(), "w.pth")
    said = call("--model", net, "--weights", "w.pth", "--source", "clip", "--peers", "torch",
                "--sample", "3", "--steps", "--json", "out.json").stdout  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert (record["sampled_frames"], record["quality"]["frames"]) == (3, 3)
    classes = record["quality"]["classes"]
    assert classes["clear"] + classes["near_ties"] == 3
    assert "same class as dense: " in said
    if classes["clear"]:
        assert f"a frame is {1 / classes['clear']:.1%}" in said
    assert "for classes see the agreement below" in said
    sums = {one["op"]: one for one in record["operations"]}
    assert sums["permute"]["dense"]
    assert sums["permute"]["steps"] == 2
    assert sums["conv2d"]["steps"] == 2
    total_ms = sum(one["ms"] for one in record["operations"])
    assert total_ms == pytest.approx(sum(one["ms"] for one in record["steps"]))
    assert "dense steps " in said
    untrained = call("--model", net, "--source", "clip", "--peers", "none", "--sample", "2").stdout
    assert "same class" not in untrained
    assert "its weights are random" in untrained


def test_the_command_samples_as_many_frames_as_python() -> None:
    command = inspect.signature(command_line.bench).parameters["sample"].default
    assert command == SAMPLES == BenchOptions(model="").sample


def test_the_table_has_both(folder: Path) -> None:
    out = Console(file=io.StringIO(), width=120)
    steps = [{**step("permute", 2.0, True), "name": "a", "shape": [3, 4], "active_share": 0.5}]
    from torchdelta.bench.operations import operations_table, steps_table

    out.print(steps_table(steps))
    out.print(operations_table(by_operation(steps)))
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().count("permute (dense)") == 2


def test_weights_of_five_dimensions_run_on_both_sides(folder: Path) -> None:
    call("--model", "quality_nets:film", "--source", "clip", "--peers", "torch", "--frames", "3",
         "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record["peers"]) == {"torch"}
    assert record["quality"]["error"]["mean"] < 0.5
