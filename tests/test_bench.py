"""What `torchdelta bench` measures: forced activity, samples, figures."""

from __future__ import annotations

import shutil
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

import torchdelta
from bench_nets import CPU, H, W, entered, frame, network, workload
from support import ENGINE_CASES, new_session
from torchdelta.bench.forced import changed_inside, disc_mask, forced_masks, made_frame
from torchdelta.bench.measure import Moment, Race, Times, sampled_steps
from torchdelta.bench.peers import Eager, Lineup, Workload
from torchdelta.bench.quality import Reference, difference, tensors
from torchdelta.bench.report import figures
from torchdelta.cli import clip as clip_module
from torchdelta.cli.clip import Clip
from torchdelta.errors import SourceError
from torchdelta.runtime.measure import forced_step


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path, monkeypatch):
        yield tmp_path


def compiled(model: nn.Module) -> torchdelta.CompiledModel:
    return torchdelta.compile(model, torch.rand(1, 3, H, W), input_range=(0, 1))


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
