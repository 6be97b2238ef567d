"""`torchdelta bench`: forced activity, peers, what is sampled, figures, the command."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import torchdelta
from conftest import require
from support import ENGINE_CASES, ENGINE_NAMES, computes_in, new_session, threads
from test_docs import rows, section
from torchdelta.bench import peers as peers_module
from torchdelta.bench.forced import changed_inside, disc_mask, forced_masks, made_frame
from torchdelta.bench.measure import Moment, Race, Times, sampled_steps
from torchdelta.bench.peers import (
    PEERS,
    Eager,
    Lineup,
    Peer,
    Workload,
    make_peers,
    parse_peers,
)
from torchdelta.bench.quality import Reference, difference, tensors
from torchdelta.bench.report import figures, write_json
from torchdelta.cli import clip as clip_module
from torchdelta.cli.app import app
from torchdelta.cli.clip import Clip
from torchdelta.engines.cpu import bind
from torchdelta.errors import EngineError, SinkError, SourceError
from torchdelta.runtime.measure import forced_step

KEYS = {
    "model", "source", "streams", "engine", "dtype", "tolerance", "frames", "ours_ms", "peers_ms",
    "best_peer", "speedup", "mac_share", "changed_input", "efficiency", "quality", "state_bytes",
    "device", "threads", "versions", "commit",
}  # fmt: skip
H, W = 48, 64
CPU = torch.device("cpu")

NETS = """
from torch import nn


def net(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, c_out, 3, 1, 1),
    )


def picture():
    return net(3, 3)
picture.preprocess = dict(channels=3, input_range=(0, 1))


def denoise():
    return net(1, 1)
denoise.preprocess = dict(channels=1, input_range=(0, 1))


def classify():
    return nn.Sequential(net(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(3, 4)

    def forward(self, x):
        x = self.body(x)
        return {"aux": x[:, :1], "out": x, "pair": (x.mean((2, 3)), x * 2)}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with small networks and a clip of 9 images in it; one thread."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "clip").mkdir()
    for i in range(9):
        cv2.imwrite(str(tmp_path / "clip" / f"{i}.png"), frame(i))
    with threads(1):
        yield tmp_path
    sys.modules.pop("nets", None)


def frame(index: int) -> np.ndarray:
    picture = made_frame((H, W), 3, 1)
    left = 4 * index % (W - 16)
    picture[16:28, left : left + 12] = 250
    return picture


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, 1, 1),
    ).eval()  # fmt: skip


def compiled(model: nn.Module) -> torchdelta.CompiledModel:
    return torchdelta.compile(model, torch.rand(1, 3, H, W), input_range=(0, 1))


# ------------------------------------------------------------------------------- forced activity


@pytest.mark.parametrize("size", [(96, 144), (37, 53), (4, 6), (7, 7)], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.25, 0.9])
def test_discs_reach_the_share_and_little_more(size: tuple[int, int], share: float) -> None:
    mask = disc_mask(size, share)
    h, w = size
    disc_px = max(1, np.pi * (w / 24 + 0.5) ** 2)
    assert share * h * w <= mask.sum() <= share * h * w + disc_px
    assert np.array_equal(mask, disc_mask(size, share))


def test_discs_at_the_ends() -> None:
    assert disc_mask((1, 1), 0.01).all()
    assert disc_mask((20, 30), 1.0).all()
    # a disc lies at the same place in a map of half the size
    large, small = disc_mask((96, 144), 0.02), disc_mask((48, 72), 0.02)
    near = cv2.dilate(large[::2, ::2].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert not (small & ~near).any()


def test_made_frames_differ_inside_the_discs_only() -> None:
    mask = disc_mask((H, W), 0.1)
    picture = made_frame((H, W), 3, 5)
    other = changed_inside(picture, mask)
    moved = np.abs(picture.astype(int) - other)
    assert np.array_equal((moved >= 64).all(-1), mask)
    assert np.array_equal((moved > 0).any(-1), mask)
    assert 20 < picture.std() < 100
    assert made_frame((H, W), 1, 5).shape == (H, W, 1)


@pytest.mark.parametrize("engine", ENGINE_CASES)
def test_forced_sets_are_used_and_published_whole(engine: str) -> None:
    fast = compiled(network())
    session = new_session(fast, engine, 0.04, slots=2)
    masks = forced_masks(fast.plan, 0.1, session.engine.device)
    frames = {"a": frame(0), "b": frame(1)}
    first = forced_step(session, frames, masks)
    # a whole frame stays whole
    assert first["a"].stats.mac_share == 1.0
    assert bool(first["a"].output_changed.all())
    # nothing has changed, yet every active pixel is computed and published
    again = forced_step(session, frames, masks, record=True)["b"]
    assert again.stats.changed_input == 0.0
    assert again.active is not None
    for index, step in enumerate(fast.plan.steps):
        assert torch.equal(again.active[step.name], masks[index])
    assert torch.equal(again.output_changed, masks[len(fast.plan.steps) - 1])
    assert torchdelta.relative_error(again.output, first["b"].output) < 1e-5
    share = sum(
        step.macs * float(masks[i].float().mean()) for i, step in enumerate(fast.plan.steps)
    )
    assert again.stats.mac_share == pytest.approx(share / fast.plan.macs, rel=1e-6)
    # everything has changed, and only what is active is computed
    moved = forced_step(session, {"a": 255 - frame(0)}, masks)["a"]
    outside = ~masks[len(fast.plan.steps) - 1]
    assert torch.equal(moved.output[0, :, outside], first["a"].output[0, :, outside])
    assert not torch.equal(moved.output, first["a"].output)


def test_forced_sets_that_do_not_fit_are_refused() -> None:
    fast = compiled(network())
    session = fast.session()
    for forced in (
        {99: torch.ones(H, W, dtype=torch.bool)},
        {0: torch.ones(H, W)},
        {0: torch.ones(H, W + 1, dtype=torch.bool)},
    ):
        with pytest.raises(ValueError, match="forced"):
            forced_step(session, {"a": frame(0)}, forced)
    assert session.streams == []


# ----------------------------------------------------------------------------------------- peers


def workload(model: nn.Module, n: int = 1, dtype: torch.dtype = torch.float32) -> Workload:
    generator = torch.Generator().manual_seed(1)
    return Workload(model, torch.rand(n, 3, H, W, generator=generator), dtype, 1)


def available(name: str) -> type[Peer]:
    (kind,) = [peer for peer in PEERS["cpu"] if peer.name == name]
    for package in kind.packages:
        require(package)
    if name == "compile" and not shutil.which(os.environ.get("CXX") or "g++"):
        pytest.skip("no C++ compiler for torch.compile")
    return kind


@pytest.mark.parametrize("name", [peer.name for peer in PEERS["cpu"]])
def test_peers_compute_the_dense_network(name: str) -> None:
    work = workload(network(), n=2)
    ready, left_out = make_peers(
        [available(name)], work, lambda _: None, asked=True, say=lambda _: None
    )
    assert not left_out
    x = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = work.model(x)
    for _ in range(2):
        out = ready[0].outputs(ready[0].run(ready[0].load(x)))
        assert torchdelta.relative_error(out, [expected]) < 1e-4
    assert ready[0].version()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")


@needs_cuda
@pytest.mark.parametrize("name", [peer.name for peer in PEERS["cuda"]])
def test_peers_on_cuda_compute_the_dense_network(name: str) -> None:
    """A frame's result is not the last one's: graphs read what `load` brought them."""
    (kind,) = [peer for peer in PEERS["cuda"] if peer.name == name]
    device = torch.device("cuda", torch.cuda.current_device())
    example = torch.rand(2, 3, H, W, device=device)
    work = Workload(network().to(device), example, torch.float16, 1)
    ready, left_out = make_peers([kind], work, lambda _: None, asked=True, say=lambda _: None)
    assert not left_out
    (peer,) = ready
    for seed in (2, 3):
        x = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(seed)).to(device)
        with torch.no_grad():
            expected = network().double().to(device)(x.double())
        (out,) = peer.outputs(peer.run(peer.load(x)))
        assert out.dtype == (torch.float32 if peer.reference else torch.float16)
        # TF32 would be off by some 3e-4
        limit = 1e-5 if peer.reference else 5e-3
        assert torchdelta.relative_error(out, expected) < limit


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_exported_results_keep_their_order(name: str, folder: Path) -> None:
    sys.path.insert(0, str(folder))
    try:
        from nets import Parts
    finally:
        sys.path.remove(str(folder))
    work = workload(Parts().eval())
    peer = available(name)(work)
    out = peer.outputs(peer.run(peer.load(work.example)))
    with torch.no_grad():
        assert difference(out, work.model(work.example), 1e-4) is None


def test_bf16_peers() -> None:
    work = workload(network(), dtype=torch.bfloat16)
    for kind in (Eager, available("openvino")):
        peer = kind(work)
        out = peer.outputs(peer.run(peer.load(work.example)))
        with torch.no_grad():
            assert difference(out, work.model(work.example), 3e-2) is None
    reason = available("onnxruntime").unavailable(torch.bfloat16)
    assert reason == "it has no bfloat16 on this device"


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise RuntimeError("not for export\nat all")
        return self.conv(x)


def test_a_peer_that_cannot_run_is_left_out_with_the_reason() -> None:
    class Wrong(Eager):
        name = "wrong"

    class Missing(Eager):
        name = "missing"
        packages = ("no_such_package",)

    work = workload(Unexportable().eval())
    kinds = [Missing, available("onnxruntime"), Eager, Wrong]
    wrong = iter([None, "all is wrong"])
    ready, notes = make_peers(kinds, work, lambda _: next(wrong), asked=False, say=lambda _: None)
    assert [peer.name for peer in ready] == ["torch"]
    assert notes[0].startswith("missing left out: no_such_package is not installed (pip install")
    assert "onnxruntime left out: the model cannot be exported to ONNX" in notes[1]
    assert "not for export" in notes[1]
    assert notes[2] == "wrong left out: its result differs from the dense network's: all is wrong"
    with pytest.raises(EngineError, match="missing cannot run: no_such_package"):
        make_peers([Missing], work, lambda _: None, asked=True, say=lambda _: None)


def test_lists_of_peers() -> None:
    kinds, asked = parse_peers(None, CPU)
    assert [k.name for k in kinds] == ["torch", "compile", "onnxruntime", "openvino"]
    assert not asked
    kinds, asked = parse_peers("openvino, torch,openvino", CPU)
    assert [k.name for k in kinds] == ["openvino", "torch"]
    assert asked
    assert parse_peers("none", CPU)[0] == []
    cuda = torch.device("cuda")
    names = ["torch", "cudagraph", "compile", "cudnn-fp32"]
    assert [k.name for k in parse_peers(None, cuda)[0]] == names
    # the other peers are float32 themselves then
    assert [k.name for k in parse_peers(None, cuda, float32=True)[0]] == names[:3]
    assert [k.name for k in parse_peers("cudnn-fp32", cuda, float32=True)[0]] == names[3:]
    for text in ("tensorflow", "torch,tensorflow", ""):
        with pytest.raises(EngineError, match="known are torch, compile, onnxruntime, openvino"):
            parse_peers(text, CPU)


# ------------------------------------------------------------------------------ what is measured


def test_samples_are_evenly_spaced_and_spare_the_first_frame() -> None:
    assert sampled_steps(2) == [1]
    assert sampled_steps(21) == list(range(1, 21))
    steps = sampled_steps(905)
    assert len(set(steps)) == 20
    assert (steps[0], steps[-1]) == (1, 904)
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 1


def test_peers_run_on_the_frame_that_ours_has_just_had() -> None:
    log: list[tuple[str, float]] = []

    class Spy(Eager):
        def run(self, feed: Tensor) -> Any:
            log.append((self.name, float(feed.sum())))
            return super().run(feed)

    model = network()
    fast = compiled(model)
    race = Race(fast.session(slots=2), Reference(model, fast.plan, CPU, torch.float32))
    race.peers = [Spy(workload(model, 2)), Spy(workload(model, 2))]
    # a class variable elsewhere: here two of a class are told apart
    race.peers[0].name, race.peers[1].name = "one", "two"  # type: ignore[misc]
    step = race.session.step

    def spy(frames: Any, **options: Any) -> Any:
        log.append(("ours", float(sum(f.astype(float).sum() for f in frames.values()) / 255)))
        return step(frames, **options)

    # mypy knows methods only as they are defined; this one is watched
    race.session.step = spy  # type: ignore[method-assign]
    moments = [Moment([frame(i), frame(i + 3)], decode_ms=2.0) for i in range(4)]
    seen = []
    times = race.run(moments, {1, 3}, seen.append)
    assert [name for name, _ in log] == ["ours", "ours", "two", "one", "ours", "ours", "two", "one"]
    for at in (1, 5):
        assert log[at][1] == pytest.approx(log[at + 1][1], rel=1e-4)
        assert log[at][1] == pytest.approx(log[at + 2][1], rel=1e-4)
    assert len(seen) == 4
    assert [len(times.ours_ms), len(times.mac_share), len(times.decode_ms)] == [3, 3, 3]
    assert {name: len(ms) for name, ms in times.peers_ms.items()} == {"one": 2, "two": 2}
    assert times.first_ms > 0


def test_figures_of_totals_and_of_medians() -> None:
    times = Times(
        first_ms=9.0, ours_ms=[1.0, 1.0, 4.0], mac_share=[0.1, 0.1, 0.4],
        changed_input=[0.0, 0.1, 0.2], decode_ms=[1.0, 1.0, 1.0],
        peers_ms={"slow": [9.0, 9.0], "steady": [5.0, 5.0], "odd": [4.0, 4.0, 16.0]},
    )  # fmt: skip
    totals = figures(times, by_median=False)
    assert totals["best_peer"] == "steady"
    assert totals["ours_ms"] == pytest.approx(2.0)
    assert totals["speedup"] == pytest.approx(2.5)
    assert totals["mac_share"] == pytest.approx(0.2)
    assert totals["efficiency"] == pytest.approx(0.5)
    assert totals["speedup_median"] == pytest.approx(4.0)
    assert totals["efficiency_median"] == pytest.approx(0.4)
    assert totals["speedup_with_decoding"] == pytest.approx(2.0)
    assert totals["ours"]["p80"] == pytest.approx(np.percentile(times.ours_ms, 80))
    medians = figures(times, by_median=True)
    assert medians["best_peer"] == "odd"
    assert (medians["ours_ms"], medians["speedup"]) == (1.0, 4.0)
    alone = figures(Times(ours_ms=[1.0], mac_share=[0.1], changed_input=[0.0]), by_median=False)
    assert alone["best_peer"] is alone["speedup"] is alone["efficiency"] is None


def test_the_reference_is_never_the_best_peer() -> None:
    times = Times(
        ours_ms=[1.0, 3.0], mac_share=[0.1, 0.3], changed_input=[0.0, 0.1],
        peers_ms={"slow": [8.0, 8.0]}, reference_ms=[4.0, 8.0],
    )  # fmt: skip
    found = figures(times, by_median=False)
    assert (found["best_peer"], found["speedup"]) == ("slow", 4.0)
    assert list(found["peers_ms"]) == list(found["peers"]) == ["slow"]
    assert (found["reference_ms"], found["reference_speedup"]) == (6.0, 3.0)
    assert found["reference"]["median"] == 6.0
    alone = figures(replace(times, peers_ms={}), by_median=True)
    assert alone["best_peer"] is alone["speedup"] is None
    assert (alone["reference_ms"], alone["sampled_frames"]) == (6.0, 2)
    without = figures(replace(times, reference_ms=[]), by_median=False)
    assert without["reference_ms"] is without["reference_speedup"] is without["reference"] is None


def test_a_reference_runs_at_every_fourth_sample() -> None:
    class Slow(Eager):
        name = "slow"
        reference = True

    model = network()
    fast = compiled(model)
    race = Race(fast.session(), Reference(model, fast.plan, CPU, torch.float32))
    race.peers = [Eager(workload(model)), Slow(workload(model))]
    times = race.run([Moment([frame(i)]) for i in range(7)], range(1, 7), lambda _: None)
    assert {name: len(ms) for name, ms in times.peers_ms.items()} == {"torch": 6}
    assert len(times.reference_ms) == 2


def test_results_are_gone_before_the_next_step() -> None:
    """An asynchronous engine keeps masks for results that live on: work that nobody asked for."""
    model = network()
    fast = compiled(model)
    race = Race(fast.session(), Reference(model, fast.plan, CPU, torch.float32))
    race.peers = [Eager(workload(model))]
    alive: list[int] = []
    seen: list[weakref.ref[Any]] = []
    step = race.session.step

    def spy(frames: Any, **options: Any) -> Any:
        alive.append(sum(ref() is not None for ref in seen))
        results = step(frames, **options)
        seen.extend(weakref.ref(result) for result in results.values())
        return results

    # mypy knows methods only as they are defined; this one is watched
    race.session.step = spy  # type: ignore[method-assign]
    race.run([Moment([frame(i)]) for i in range(4)], {1, 2}, lambda _: None)
    assert alive == [0, 0, 0, 0]


def test_peers_are_prepared_once_for_a_shape() -> None:
    made: list[int] = []

    class Counted(Eager):
        def __init__(self, work: Workload) -> None:
            made.append(len(work.example))
            super().__init__(work)

    lineup = Lineup([Counted], True, lambda _: None)
    model = network()
    checks = iter([None, None])

    def check() -> Callable[[list[Tensor]], str | None]:
        return lambda _: next(checks)

    first, _ = lineup.prepare(workload(model), check)
    again, _ = lineup.prepare(workload(model), check)
    assert first[0] is again[0]
    lineup.prepare(workload(model, 2), check)
    assert made == [1, 2]
    assert Lineup([], True, print).prepare(workload(model), check) == ([], [])


def test_allowances_follow_the_dtype() -> None:
    model = network()
    fast = compiled(model)
    x = torch.rand(1, 3, H, W)

    def allowance(dtype: torch.dtype, tf32: bool = False) -> float:
        return Reference(model, fast.plan, CPU, dtype, tf32=tf32).allowance(x)

    assert allowance(torch.float32) == 1e-3
    # a CPU has no TF32, so the floor is what is left
    assert allowance(torch.float32, tf32=True) == 2e-2
    assert 1e-2 <= allowance(torch.float16) < 2e-2
    assert 3e-2 <= allowance(torch.bfloat16) < 1e-1


def test_difference_tells_wrong_from_rounded() -> None:
    x, classes = torch.rand(1, 4), torch.arange(100)
    assert difference([x + 1e-6, classes], [x, classes], 1e-3) is None
    assert "relative L2" in (difference(x * 1.1, x, 1e-3) or "")
    assert "relative L2" in (difference(x * float("nan"), x, 1e-3) or "")
    assert "[1, 4]" in (difference(x[:, :3], x, 1e-3) or "")
    assert "whole numbers" in (difference(classes + 1, classes, 1e-3) or "")
    assert tensors({"a": x, "b": (classes, 3)}) == [x, classes]


def test_streams_begin_all_over_the_clip_and_go_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip("clip", channels=3, size=None, streams=2, frames=None)
    moments = list(clip.moments())
    assert clip.count == len(moments) == 9
    pictures = [frame(i)[..., ::-1] for i in range(9)]
    for t, moment in enumerate(moments):
        for stream, start in enumerate((0, 4)):
            assert np.array_equal(moment.frames[stream], pictures[(start + t) % 9])
        assert moment.decode_ms is not None
        assert moment.decode_ms > 0
    # several streams play it from memory, one does not
    shutil.move("clip", "gone")
    again = list(clip.moments())
    assert [m.decode_ms for m in again] == [m.decode_ms for m in moments]
    shutil.move("gone", "clip")
    # what does not fit is decoded for each stream
    monkeypatch.setattr(clip_module, "KEPT_BYTES", 5 * H * W * 3)
    large = list(Clip("clip", channels=3, size=None, streams=2, frames=4).moments())
    assert len(large) == 4
    for moment, other in zip(large, moments, strict=False):
        assert all(map(np.array_equal, moment.frames, other.frames))
    short = Clip("clip", channels=1, size=(24, 32), streams=1, frames=3)
    assert [m.frames[0].shape for m in short.moments()] == [(24, 32, 1)] * 3
    assert short.peek(5).shape == (3, 24, 32, 1)
    with pytest.raises(SourceError, match="one frame only"):
        Clip("clip/0.png", channels=3, size=None, streams=1, frames=None)


# ----------------------------------------------------------------------------------- the command


def test_a_clip_gives_figures_that_agree_with_each_other(folder: Path) -> None:
    for module in ("onnxruntime", "openvino"):
        require(module)
    result = call(
        "--model", "nets:classify", "--source", "clip", "--tolerance", "0.02",
        "--peers", "torch,onnxruntime,openvino", "--steps", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert set(record["peers"]) == {"torch", "onnxruntime", "openvino"} == set(record["peers_ms"])
    assert record["speedup"] == pytest.approx(min(record["peers_ms"].values()) / record["ours_ms"])
    assert record["peers_ms"][record["best_peer"]] == min(record["peers_ms"].values())
    assert record["efficiency"] == pytest.approx(record["mac_share"] * record["speedup"])
    assert record["efficiency_median"] == pytest.approx(
        record["mac_share_median"] * record["speedup_median"]
    )
    assert record["ours"]["p20"] <= record["ours"]["median"] <= record["ours"]["p80"]
    assert 0 < record["changed_input"] < record["mac_share"] < 1
    assert (record["frames"], record["sampled_frames"], record["quality"]["frames"]) == (9, 8, 8)
    assert (record["source"], record["active"], record["size"]) == ("clip", None, [H, W])
    assert (record["tolerance"], record["dtype"], record["threads"]) == (0.02, "fp32", 1)
    assert record["quality"]["classes"] is None
    assert record["quality"]["layer_error"]["mean"] < 0.1
    assert record["prepared"]
    assert any("random" in note for note in record["notes"])
    assert record["state_bytes"] > 8 * H * W * 4
    assert record["peak_rss_bytes"] > 10 * record["state_bytes"]
    assert {"torchdelta", "torch", "onnxruntime", "openvino"} <= set(record["versions"])
    assert record["commit"]
    spent_ms = [step["ms"] for step in record["steps"]]
    assert spent_ms == sorted(spent_ms, reverse=True)
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["contestant"][1:] == ["median", "20%", "80%", "mean"]
    for name, ms in (("torchdelta", record["ours"]), *record["peers"].items()):
        cells = [float(cell) for cell in lines[name][-4:]]
        assert cells == pytest.approx(
            [ms["median"], ms["p20"], ms["p80"], ms["mean"]], rel=1e-2, abs=6e-3
        )
    for word in ("speedup", "MAC share", "efficiency", "quality", "relative L2", "conditions",
                 "decoding", "slowest steps", "note: weights: random"):  # fmt: skip
        assert word in result.stdout
    assert "wrote out.json" in result.stdout
    assert sorted(p.name for p in folder.iterdir() if "json" in p.name) == ["out.json"]


def test_forced_activity_needs_no_clip(folder: Path) -> None:
    result = call(
        "--model", "nets:picture", "--active", "0.1", "--size", "96x144", "--frames", "5",
        "--streams", "2", "--peers", "torch", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert 0.1 <= record["mac_share"] < 0.12
    assert record["mac_share"] == pytest.approx(disc_mask((96, 144), 0.1).mean(), rel=1e-5)
    assert 0.1 < record["changed_input"] < 0.2
    assert record["source"] is record["quality"] is record["steps"] is None
    best = "cpu" if "cpu" in ENGINE_NAMES else "torch"
    assert record["engine"] == best
    assert record["isa"] == (bind.choose_isa() if best == "cpu" else None)
    assert record["engine_reason"].startswith("auto: ")
    assert f"engine      {best} (auto: " in result.stdout
    assert (record["active"], record["streams"], record["sampled_frames"]) == (0.1, 2, 4)
    assert record["ours_ms"] == record["ours"]["median"]
    assert record["efficiency"] == pytest.approx(record["mac_share"] * record["speedup"])
    assert "10.0% of every map forced active" in result.stdout
    assert "not measured: forced active sets" in result.stdout


@needs_cuda
def test_the_triton_engine_against_all_peers_on_cuda(folder: Path) -> None:
    result = call(
        "--model", "nets:picture", "--source", "clip", "--engine", "triton", "--dtype", "fp16",
        "--tolerance", "0.02", "--streams", "2", "--steps", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert (record["engine"], record["dtype"], record["streams"]) == ("triton", "fp16", 2)
    assert set(record["peers"]) == {"torch", "cudagraph", "compile"} == set(record["peers_ms"])
    assert record["reference_speedup"] == pytest.approx(record["reference_ms"] / record["ours_ms"])
    assert record["speedup"] == pytest.approx(min(record["peers_ms"].values()) / record["ours_ms"])
    assert 0 < record["changed_input"] < record["mac_share"] < 1
    assert record["quality"]["layer_error"]["mean"] < 0.1
    assert record["device"] == torch.cuda.get_device_name()
    assert {"cuda", "cudnn", "triton"} <= set(record["versions"])
    assert all(step["ms"] > 0 for step in record["steps"])
    assert not [note for note in record["notes"] if "left out" in note]
    assert "cudnn-fp32 (reference)" in result.stdout


def test_an_unchanged_frame(folder: Path) -> None:
    result = call(
        "--model", "nets:classify", "--active", "0", "--size", "48x64", "--frames", "4",
        "--peers", "torch", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    # nothing is forced, and the gates find nothing, the vector behind the pool included
    assert (record["active"], record["mac_share"], record["changed_input"]) == (0, 0, 0)
    assert record["efficiency"] is None
    assert record["speedup"] > 0
    assert "the same frame again and again" in result.stdout
    assert "efficiency" not in result.stdout


def test_a_record_says_why_it_is_of_the_torch_engine(folder: Path) -> None:
    args = ["--model", "nets:picture", "--active", "0.1", "--size", "24x32", "--frames", "3",
            "--peers", "none", "--json", "out.json", "--dtype", "fp16"]  # fmt: skip
    result = call(*args)
    record = json.loads(Path("out.json").read_text())
    assert (record["engine"], record["isa"], record["dtype"]) == ("torch", None, "fp16")
    if "cpu" in ENGINE_NAMES:
        assert "not cpu: the cpu engine computes in fp32 and bf16" in record["engine_reason"]
    note = f"ours ran on the torch engine: {record['engine_reason']}"
    assert note in record["notes"]
    assert f"note: {note}" in result.stdout
    # as asked: no fallback
    call(*args, "--engine", "torch")
    record = json.loads(Path("out.json").read_text())
    assert record["engine_reason"] == "as asked"
    assert not any("ours ran on" in note for note in record["notes"])


@pytest.mark.skipif(
    not any(computes_in(case, torch.bfloat16) for case in ENGINE_CASES if "cpu" in case),
    reason="this CPU has no AVX512-BF16",
)
def test_bf16_on_the_cpu_engine(folder: Path) -> None:
    call("--model", "nets:picture", "--source", "clip", "--frames", "4", "--dtype", "bf16",
         "--peers", "torch", "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert (record["engine"], record["isa"], record["dtype"]) == ("cpu", "avx512_bf16", "bf16")
    assert 1e-3 < record["quality"]["layer_error"]["mean"] < 0.1
    assert list(record["peers"]) == ["torch"]


def test_weights_and_a_profile_from_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    model = importlib.import_module("nets").picture()
    torch.save(model.state_dict(), "w.pth")
    # the same goes in, and nothing comes out of the gates behind it
    torchdelta.Profile({"*": 1e6, "input": 1.0}).save("loose.json")
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "4", "--peers", "none",
            "--weights", "w.pth", "--json", "out.json"]  # fmt: skip
    records = []
    for more in ([], ["--profile", "loose.json"]):
        call(*args, *more)
        records.append(json.loads(Path("out.json").read_text()))
    plain, loose = records
    for record in records:
        assert not record["prepared"]
        assert not any("random" in note for note in record["notes"])
    assert loose["changed_input"] == plain["changed_input"] > 0
    assert loose["mac_share"] < 0.7 * plain["mac_share"]


def test_tf32_is_refused_where_no_engine_has_it(folder: Path) -> None:
    args = ["--model", "nets:picture", "--source", "clip", "--dtype", "tf32"]
    result = call(*args, "--engine", "torch", code=1)
    assert "it has no tf32, which the triton engine has" in result.stderr


def test_a_reference_has_a_line_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Eager):
        name = "cudnn-fp32"
        reference = True

    monkeypatch.setitem(peers_module.PEERS, "cpu", (Eager, Slow))
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "3", "--json", "out.json"]
    result = call(*args, "--dtype", "bf16", "--engine", "torch")
    record = json.loads(Path("out.json").read_text())
    assert list(record["peers"]) == ["torch"]
    assert record["reference_speedup"] == pytest.approx(record["reference_ms"] / record["ours_ms"])
    assert "cudnn-fp32 (reference)" in result.stdout
    assert "cuDNN in float32 without TF32" in result.stdout
    call(*args)
    assert json.loads(Path("out.json").read_text())["reference"] is None


def test_grey_pictures_in_two_streams(folder: Path) -> None:
    call(
        "--model", "nets:denoise", "--source", "clip", "--streams", "2", "--frames", "4",
        "--size", "24x32", "--peers", "none", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert record["quality"]["psnr_db"]["mean"] > 20
    assert record["quality"]["psnr_peak"] == "range of the input"
    assert record["speedup"] is None
    assert record["peers_ms"] == {}
    assert (record["frames"], record["streams"], record["size"]) == (4, 2, [24, 32])


def test_the_whole_session_is_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours cannot hide work outside what is timed: a step that sleeps shows."""
    slow_ms, step = 30.0, torchdelta.Session.step

    def slow(*args: Any, **options: Any) -> Any:
        import time

        time.sleep(slow_ms / 1e3)
        return step(*args, **options)

    monkeypatch.setattr(torchdelta.Session, "step", slow)
    call("--model", "nets:picture", "--source", "clip", "--frames", "4", "--peers", "none",
         "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert slow_ms < record["ours"]["p20"]
    assert slow_ms < record["first_ms"]
    assert record["decode_ms"] < slow_ms


def test_no_figures_of_a_wrong_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "dense", lambda self, x: torch.ones(len(x), 3, H, W))
    result = call("--model", "nets:picture", "--source", "clip", "--peers", "none",
                  "--json", "out.json", code=1)  # fmt: skip
    assert "is not the dense network's: relative L2 error" in result.stderr
    assert not Path("out.json").exists()


def test_default_peers_that_cannot_run_are_notes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Peer, work: Workload) -> None:
        raise RuntimeError("no such luck\nwith a long story")

    monkeypatch.setitem(peers_module.PEERS, "cpu", PEERS["cpu"][:2])
    monkeypatch.setattr(PEERS["cpu"][1], "__init__", refuse)
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "3", "--json", "out.json"]
    call(*args)
    record = json.loads(Path("out.json").read_text())
    assert list(record["peers"]) == ["torch"]
    assert "compile left out: RuntimeError: no such luck" in record["notes"]
    result = call(*args, "--peers", "compile,torch", code=1)
    assert "compile cannot run: RuntimeError: no such luck" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--source", "clip", "--active", "0.1"], 2, "one of --source CLIP and --active SHARE"),
        ([], 2, "one of --source CLIP and --active SHARE"),
        (["--active", "-0.1"], 2, "is no share"),
        (["--active", "1.5"], 2, "is no share"),
        (["--active", "nan"], 2, "is no share"),
        (["--active", "0.1"], 1, "does not say what size it is for; give --size HxW"),
        (["--source", "0"], 1, "camera 0 cannot be played twice"),
        (["--source", "none.mp4"], 1, "no such file"),
        (["--source", "clip", "--peers", "caffe"], 1, "known are torch"),
        (["--source", "clip", "--json", "none/out.json"], 1, "there is no folder"),
        (["--source", "clip", "--json", "clip"], 1, "would overwrite the source"),
        (["--source", "clip", "--json", "clip/1.png"], 1, "would overwrite the source"),
        (["--source", "clip", "--frames", "1"], 2, "frames"),
        (["--source", "clip", "--streams", "0"], 2, "streams"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_come_before_the_work(
    args: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("this is the work")

    monkeypatch.setattr(torchdelta, "compile", refuse)
    result = call("--model", "nets:picture", *args, code=code)
    said = " ".join(result.stderr.replace("│", " ").split())
    assert message in said


def test_json_is_written_whole_or_not_at_all(folder: Path) -> None:
    path = Path("out.json")
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"a": 1.0, "b": object()})
    assert path.read_text() == "old"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5]}
    with pytest.raises(SinkError, match="cannot be written"):
        write_json(Path("none/out.json"), {})
    assert sorted(p.name for p in folder.iterdir()) == ["clip", "nets.py", "out.json"]


def test_every_key_is_in_the_documents(folder: Path) -> None:
    call("--model", "nets:picture", "--source", "clip", "--frames", "3", "--peers", "none",
         "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    _, table = section("docs/usage.md", "torchdelta bench").split("**--json**")
    named = [word.strip("`") for row in rows(table) for word in row[0].split(", ")]
    assert sorted(named) == sorted(record)


def test_every_peer_is_in_the_documents() -> None:
    table, _ = section("docs/usage.md", "torchdelta bench").split("**--json**")
    named = {row[0].strip("`") for row in rows(table)}
    assert named == {peer.name for kinds in PEERS.values() for peer in kinds}
