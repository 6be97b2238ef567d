"""Windows that move: the input gate, masks and regions of interest."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import torchdelta
from ring_worlds import ENGINES, PAN, SHAPE, Point, World, compiled, same_output, step, walk
from support import new_session
from torchdelta.ops.gate import FINE, input_gate
from torchdelta.runtime.measure import placed_step
from torchdelta.runtime.windows import Window


def gate_by_hand(
    new: np.ndarray, old: np.ndarray, threshold: float, mask: np.ndarray, unseen: np.ndarray,
    grain: int,
) -> np.ndarray:  # fmt: skip
    """Do what `input_gate` says, pixel by pixel; new and old: [H, W, C], full scale 1."""
    h, w = mask.shape
    known = mask & ~unseen
    diff = np.abs(new - old).mean(-1)

    def exceeds(rows: range, columns: range, limit: float) -> bool:
        box = [
            diff[j, i] for j in rows for i in columns if 0 <= j < h and 0 <= i < w and known[j, i]
        ]
        return bool(box) and np.mean(box) > limit

    if threshold == 0:
        return (known & (new != old).any(-1)) | unseen
    around = (-1, 0, 1)
    hot = np.zeros((-(-h // grain), -(-w // grain)), bool)
    for y, x in product(*map(range, hot.shape)):
        rows, columns = range(y * grain, (y + 1) * grain), range(x * grain, (x + 1) * grain)
        own = [(j, i) for j in rows for i in columns if j < h and i < w and known[j, i]]
        wide = [range(n.start - grain, n.stop + grain) for n in (rows, columns)]
        hot[y, x] = bool(own) and exceeds(*wide, threshold)
        if grain > 1:
            hot[y, x] |= any(
                exceeds(range(j - 1, j + 2), range(i - 1, i + 2), FINE * threshold) for j, i in own
            )
    marked = np.zeros((h, w), bool)
    for y, x in zip(*np.nonzero(hot), strict=True):
        for j, i in product(around, around):
            rows, columns = max(0, y + j) * grain, max(0, x + i) * grain
            if y + j >= 0 and x + i >= 0:
                marked[rows : rows + grain, columns : columns + grain] = True
    return (marked & mask) | unseen


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("parts", ["none", "mask", "unseen", "both"])
@pytest.mark.parametrize("grain", [1, 2, 3])
def test_the_input_gate_compares_what_can_be_compared(
    threshold: float, parts: str, grain: int
) -> None:
    r = np.random.default_rng(0)
    published = []
    for n in range(20):
        h, w = r.integers(1, 9 if grain == 1 else 20, 2)
        old = r.random((h, w, 3), dtype=np.float32)
        differs = r.random((h, w, 1)) < (0.2 if grain == 1 else (0.02, 0.25)[n % 2])
        y, x = r.integers(0, h), r.integers(0, w)
        # of larger cells: enough in one place
        differs[y : y + grain, x : x + grain] |= grain > 1 and n % 4 < 2
        new = np.where(differs, r.random((h, w, 3), dtype=np.float32), old)
        mask, unseen = r.random((h, w)) < 0.7, r.random((h, w)) < 0.3
        mask = np.ones_like(mask) if parts in ("none", "unseen") else mask
        unseen = np.zeros_like(mask) if parts in ("none", "mask") else unseen
        found = input_gate(
            # what lies where nothing can be compared does not matter
            torch.from_numpy(new), torch.from_numpy(np.where(unseen[..., None], np.nan, old)),
            threshold, torch.ones(3),
            mask=None if parts in ("none", "unseen") else torch.from_numpy(mask),
            unseen=None if parts in ("none", "mask") else torch.from_numpy(unseen), grain=grain,
        )  # fmt: skip
        expected = gate_by_hand(new, old, threshold, mask, unseen, grain)
        assert np.array_equal(found.numpy(), expected)
        published.append(float(expected.mean()))
    assert 0 < np.mean(published) < 1


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
@pytest.mark.parametrize("grain", [1, 3, 8])
def test_frames_that_are_valid_in_part_are_gated_alike(
    engine: str, tolerance: float, grain: int
) -> None:
    """All engines publish the input pixels that the torch engine does."""
    fast, _ = compiled("strides")
    sessions = [new_session(fast, name, tolerance, grain=grain) for name in ("torch", engine)]
    world, r = World(), np.random.default_rng(0)
    for t, origin in enumerate(walk(fast.plan.total_stride, PAN)):
        world.change(origin, fast.plan.size)
        # in blocks of cells: some have no valid pixel
        block = np.ones((1, 1) if grain == 1 else (7, 7), bool)
        size = [-(-n // k) for n, k in zip(fast.plan.size, block.shape, strict=True)]
        valid = np.kron(r.random(size) < 0.7, block)[: fast.plan.size[0], : fast.plan.size[1]]
        frame = world.show(origin, fast.plan.size)
        # what is not valid does not matter
        frame = torch.where(torch.from_numpy(valid), frame, torch.rand(frame.shape))
        window = Window(origin, valid if t % 4 else None, "keep")
        theirs, mine = (placed_step(s, {"s": frame}, {"s": window})["s"] for s in sessions)
        assert torch.equal(mine.changed.cpu(), theirs.changed), t
        published = [s.stream("s").published().cpu() for s in sessions]
        assert torch.allclose(*published, atol=1e-6)
        assert 0 < mine.stats.changed_input <= 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
def test_only_the_region_of_interest_is_looked_at(engine: str, tolerance: float) -> None:
    fast, model = compiled("strides")
    h, w = fast.plan.size
    session = new_session(fast, engine, tolerance)
    r = torch.Generator().manual_seed(0)
    first, second = (torch.rand(1, 3, h, w, generator=r) for _ in range(2))
    roi = np.zeros((h, w), bool)
    roi[3:9, 4:12] = True
    # a first frame is published whole, whatever the region
    assert session.step({"s": first}, roi={"s": roi})["s"].stats.first
    assert torch.equal(session.stream("s").published().cpu(), first)
    result = session.step({"s": second}, roi={"s": torch.from_numpy(roi)})["s"]
    assert result.changed.cpu().numpy()[roi].all()
    assert not result.changed.cpu().numpy()[~roi].any()
    inside = torch.from_numpy(roi)[None, None]
    assert torch.equal(session.stream("s").published().cpu(), torch.where(inside, second, first))
    # outside the region a NaN is not looked at either, and nothing is idle for ever
    assert session.step({"s": second}, roi={"s": roi})["s"].stats.mac_share == 0.0
    assert not session.step({"s": first}, roi={"s": np.zeros((h, w), bool)})["s"].changed.any()
    result = session.step({"s": second})["s"]
    assert torch.equal(session.stream("s").published().cpu(), second)
    if tolerance == 0:
        assert same_output(result, model, second)


@pytest.mark.parametrize("engine", ENGINES)
def test_new_strips_are_published_whatever_the_region(engine: str) -> None:
    fast, model = compiled("strides")
    session, world = new_session(fast, engine, 0.0), World()
    empty = np.zeros(fast.plan.size, bool)
    for origin in walk(fast.plan.total_stride, PAN):
        result = step(session, world, origin, roi={"s": empty})
        # nothing moves in the world: what is old is still right
        assert same_output(result, model, world.show(origin, fast.plan.size))
    assert 0 < result.stats.changed_input < 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tolerance", [0.0, 0.04])
def test_what_was_never_seen_is_0(engine: str, tolerance: float) -> None:
    """Frames that are valid in part: pixels elsewhere stay, or are 0 where there is nothing."""
    shape, mean, std = SHAPE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    _, model = compiled("strides")
    fast = torchdelta.compile(
        model, torch.rand(1, *shape), input_range=(0, 1), mean=mean, std=std
    )  # fmt: skip
    size, stride = fast.plan.size, fast.plan.total_stride
    session, world = new_session(fast, engine, tolerance), World()
    r = np.random.default_rng(0)
    known: dict[Point, Tensor] = {}
    for t, origin in enumerate(walk(stride, [*PAN[:12], (20, 20)])):
        valid = r.random(size) < 0.6
        frame = world.show(origin, size)
        garbage = torch.where(torch.from_numpy(valid), frame, torch.rand(frame.shape))
        window = Window(origin, valid if t % 2 else torch.from_numpy(valid), "exact")
        result = placed_step(session, {"s": garbage}, {"s": window})["s"]
        if result.stats.first:
            known.clear()
        places = {(y + origin[0], x + origin[1]): (y, x) for y, x in product(*map(range, size))}
        # what the window has left is forgotten
        known = {p: v for p, v in known.items() if p in places}
        expected = torch.zeros(1, 3, *size)
        for place, (y, x) in places.items():
            if valid[y, x]:
                known.setdefault(place, fast.preprocess(frame)[0, :, y, x])
            if place in known:
                expected[0, :, y, x] = known[place]
        published = session.stream("s").published().cpu()
        found = torch.isclose(published, expected, atol=1e-6)
        # a tolerance may leave single pixels that were never seen as they are
        assert (found | (published == 0) & bool(tolerance)).all(), t
        if tolerance == 0:
            assert same_output(result, model, expected)
    assert session.stream("s").stats.reasons == {
        "first frame": 1, "the window jumped by more than its size": 1
    }  # fmt: skip
