"""The cpu engine on windows that move: bit for bit what it gives on a whole frame, at any ring."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import torchdelta
from cases import OP_CASES
from random_nets import compiled_net
from support import (
    ENGINE_CASES,
    ENGINE_NAMES,
    ISA_CASES,
    compiled,
    each,
    make_engine,
    new_session,
    same_bits,
    threads,
)
from torchdelta.engines.base import FrameCall, Move
from torchdelta.engines.cpu import CpuEngine
from torchdelta.engines.cpu.blob import in_tiles
from torchdelta.plan import Plan
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.session import Session

if "cpu" not in ENGINE_NAMES:
    # test_every_engine_is_tested says whether that may be
    pytest.skip(CpuEngine.usable()[1], allow_module_level=True)

BEST = next(case for case in ENGINE_CASES if case.startswith("cpu-"))
# rings are one source for all instruction sets: another one than the best runs networks
OTHER = [BEST, *ISA_CASES][-1]
CPU = torch.device("cpu")
NATIVE_CASES = [case for case, (op, _, _) in OP_CASES.items() if op != "dense"]
# in whose networks every way of finding inputs in a ring occurs
NETWORK_OPS = (
    "bilinear",
    "conv2d",
    "conv_transpose2d",
    "global_reduce",
    "max_pool2d",
    "pixel_unshuffle",
)
# moves in total strides; the ring is left and entered in all directions, once by a jump
MOVES = ((0, 1), (1, 0), (0, 0), (-2, -1), (0, -3), (1, 2), (0, 0), (200, 300), (-1, 1), (3, -5))


class World:
    """A picture without end: it begins again after some more pixels than a window has."""

    def __init__(self, shape: Sequence[int], seed: int) -> None:
        self.size = shape[1:]
        self.random = np.random.default_rng(seed)
        h, w = self.size
        self.picture = self.random.random((2 * h + 3, 2 * w + 5, shape[0]), dtype=np.float32)

    def change(self) -> None:
        """Paint a patch anew."""
        h, w = (1 + n // 3 for n in self.size)
        y, x = (
            int(self.random.integers(0, n - m))
            for n, m in zip(self.picture.shape[:2], (h, w), strict=True)
        )
        self.picture[y : y + h, x : x + w] = self.random.random((h, w, 1), dtype=np.float32)

    def window(self, origin: Sequence[int]) -> Tensor:
        """Cut a window out: [C, H, W]."""
        y, x = (
            (np.arange(n) + at) % m
            for n, at, m in zip(self.size, origin, self.picture.shape[:2], strict=True)
        )
        return torch.from_numpy(self.picture[np.ix_(y, x)]).permute(2, 0, 1)


def in_reading_order(session: Session, slot: int = 0) -> list[Tensor]:
    """Give a slot's buffers as the window has them."""
    state, plan = frame_state(session), session.plan
    corners = {v.buffer: state.rings[slot, v.index] for v in plan.owners}
    return [
        torch.roll(buffer[slot], tuple(-int(k) for k in corners[i]), (0, 1))
        for i, buffer in enumerate(state.buffers)
    ]


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    assert all(bool(same_bits(x, y).all()) for x, y in zip(a, b, strict=True))


def walk(plan: Plan, seed: int) -> Iterator[tuple[tuple[int, int], Move | None, Tensor]]:
    """Move a window over a world that changes; gives its origin, the move and the frame."""
    world, (y, x), total = World(plan.shape, seed), (0, 0), plan.total_stride
    for n, (dy, dx) in enumerate(MOVES):
        shift = dy * total[0], dx * total[1]
        y, x = y + shift[0], x + shift[1]
        if n % 2:
            world.change()
        yield (y, x), Move(shift, exact=True) if any(shift) else None, world.window((y, x))


def check_walk(session: Session, whole: Session, most: int) -> None:
    """After every move the state is that of a whole run, at whichever ring that one begins.

    most: threads; the number of them changes from frame to frame
    """
    state, engine = frame_state(session), session.engine
    first = World(session.plan.shape, 5).window((0, 0))
    engine.step(state, FrameCall({0: first}, frozenset({0})))
    for t, (origin, move, frame) in enumerate(walk(session.plan, 5)):
        state.place(0, origin)
        with threads(1 + t % most):
            engine.step(state, FrameCall({0: frame}, moved={0: move} if move else {}))
        frame_state(whole).place(0, origin if t % 2 else (0, 0))
        whole.engine.step(frame_state(whole), FrameCall({0: frame}, frozenset({0})))
        assert_same(in_reading_order(session), in_reading_order(whole))


@pytest.mark.parametrize("case", each(NATIVE_CASES))
def test_p1_bit_for_bit(case: str) -> None:
    """With exact borders, on one and two threads."""
    fast, _ = compiled(case)
    check_walk(new_session(fast, BEST, 0.0), new_session(fast, BEST, 0.0), 2)


def test_tiles_of_windows_that_move() -> None:
    """Tiles begin at even places of the window, wherever it lies in its ring."""
    fast, _ = compiled("conv-3x3-16-64")
    assert in_tiles(fast.plan, fast.plan.steps[-1])
    profile = torchdelta.Profile({"input": 0.0})
    session, whole = new_session(fast, BEST, 1e-9, profile=profile), new_session(fast, BEST, 0.0)
    engine, state = session.engine, frame_state(session)
    state.exact[0] = False
    engine.step(state, FrameCall({0: World(fast.plan.shape, 5).window((0, 0))}, frozenset({0})))
    for t, (origin, move, frame) in enumerate(walk(fast.plan, 5)):
        state.place(0, origin)
        engine.step(state, FrameCall({0: frame}, moved={0: move} if move else {}))
        frame_state(whole).place(0, origin if t % 2 else (0, 0))
        whole.engine.step(frame_state(whole), FrameCall({0: frame}, frozenset({0})))
        for got, want in zip(in_reading_order(session), in_reading_order(whole), strict=True):
            assert torchdelta.relative_error(got, want) < 3e-6


def test_frame_of_another_shape() -> None:
    """Native code reads no further than a frame goes: it is refused before."""
    fast, _ = compiled("conv-3x3-16-64")
    session = new_session(fast, BEST, 0.0)
    frame = World(fast.plan.shape, 5).window((0, 0)).permute(1, 2, 0)
    with pytest.raises(ValueError, match=r"expected \(16, .*\[C, H, W\]"):
        session.engine.step(frame_state(session), FrameCall({0: frame}, frozenset({0})))


@pytest.mark.parametrize("op", each(NETWORK_OPS))
def test_p1_bit_for_bit_in_networks(op: str) -> None:
    """The same through a random network; 5 threads have less than a row each in the small maps."""
    fast, _ = compiled_net(op, 0)
    # PyTorch's own sums may hang on the place in memory
    assert not make_engine(OTHER, fast.plan, CPU, torch.float32).foreign_steps()
    check_walk(new_session(fast, OTHER, 0.0), new_session(fast, OTHER, 0.0), 5)
