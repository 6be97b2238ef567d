"""`bench --motion`: ours follows a moving camera, the peers run on the frame."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from support import enter_with_module, threads
from torchdelta.bench.peers import Eager
from torchdelta.cli.app import app
from torchdelta.motion.align import Aligner
from torchdelta.runtime.session import Session

H, W, FRAMES, STEP = 48, 64, 8, 3
NETS = """
from torch import nn


def heat():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Upsample(scale_factor=4), nn.Conv2d(8, 4, 3, 1, 1),
    )
heat.preprocess = dict(channels=3, input_range=(0, 1))


def flat():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 24 * 32, 5))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    enter_with_module(monkeypatch, tmp_path, "bench_motion_nets", NETS)
    Path("pan").mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (20, 24, 3)).astype(np.float32)
    world = cv2.resize(coarse, (192, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    for t in range(FRAMES):
        view = world[20 : 20 + H, STEP * t : STEP * t + W]
        cv2.imwrite(f"pan/{t}.png", view.astype(np.uint8))
    with threads(1):
        yield tmp_path


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == code, result.output
    return result


def measured(*args: str) -> tuple[dict[str, Any], str]:
    said = call(
        "--model", "bench_motion_nets:heat", "--source", "pan", "--engine", "torch", "--json",
        "out.json", *args,
    ).stdout  # fmt: skip
    return json.loads(Path("out.json").read_text()), said


def test_ours_follows_on_windows_and_peers_run_on_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    run = Eager.run
    monkeypatch.setattr(Eager, "run", lambda self, x: (shapes.append(x.shape), run(self, x))[1])
    record, said = measured(
        "--motion", "translation", "--border", "exact", "--tolerance", "0", "--peers", "torch",
        "--steps",
    )  # fmt: skip
    assert {tuple(shape[2:]) for shape in shapes} == {(H, W)}
    found = record["following"]
    assert (record["motion"], record["border"]) == ("translation", "exact")
    assert found["window"] == [H + 4, W + 4]
    assert found["followed_frames"] == FRAMES - 1
    assert found["moves"] > 0
    assert found["reasons"] == {}
    # against the dense network on the window, which at tolerance 0 ours equals
    assert record["quality"]["error"]["worst"] < 1e-4
    assert record["quality"]["layer_error"]["worst"] < 1e-4
    assert record["quality"]["frames"] == FRAMES - 1
    assert 0 < found["align_ms"] < record["ours_ms"]
    assert "on windows of 52x68" in said
    assert "against dense on the window" in said
    assert "the peers run on the frame" in said
    assert record["steps"]


def test_estimation_is_in_the_times_and_reported_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Aligner.place

    def slow(self: Aligner, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return place(self, *args, **kwargs)

    monkeypatch.setattr(Aligner, "place", slow)
    record, _ = measured("--motion", "features", "--peers", "none", "--frames", "4")
    assert record["following"]["align_ms"] >= 50
    assert record["ours_ms"] >= record["following"]["align_ms"]


@pytest.mark.parametrize("motion", ["codec", "auto"])
def test_every_way_to_follow(motion: str) -> None:
    record, said = measured("--motion", motion, "--peers", "none", "--streams", "2")
    assert record["motion"] == motion
    assert record["streams"] == 2
    assert "following   " in said
    assert record["quality"]["frames"] == FRAMES - 1
    assert len(record["grain"]) == 2


def test_vectors_of_the_decoder_reach_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [cv2.imread(f"pan/{t}.png") for t in range(FRAMES)]
    from torchdelta.video.sink import VideoWriter

    with VideoWriter(Path("pan.mp4"), fps=25, size=(H, W)) as writer:
        for frame in frames:
            writer.write(frame)
    seen = []
    step = Session.step

    def spy(self: Session, given: Any, **options: Any) -> Any:
        seen.extend(getattr(frame, "vectors", None) for frame in given.values())
        return step(self, given, **options)

    monkeypatch.setattr(Session, "step", spy)
    call("--model", "bench_motion_nets:heat", "--source", "pan.mp4", "--motion", "codec",
         "--peers", "none", "--engine", "torch")  # fmt: skip
    assert any(vectors is not None for vectors in seen)


def test_fixed_cameras_follow_nothing() -> None:
    record, said = measured("--peers", "none", "--frames", "3")
    assert (record["motion"], record["border"], record["following"]) == ("none", None, None)
    assert "following" not in said


def test_forced_activity_is_of_fixed_cameras() -> None:
    result = call("--model", "bench_motion_nets:heat", "--active", "0.1", "--size", "48x64",
                  "--motion", "features", code=2)  # fmt: skip
    assert "--active" in result.stderr
    assert "fixed camera" in result.stderr


def test_a_network_without_windows_says_so() -> None:
    result = call("--model", "bench_motion_nets:flat", "--source", "pan", "--motion", "features",
                  "--peers", "none", "--engine", "torch", code=1)  # fmt: skip
    assert "windows of" in result.stderr
