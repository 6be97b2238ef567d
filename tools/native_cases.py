"""Write the op cases with the states that the torch engine expects, for `native/tests/runner.cpp`.

    python tools/native_cases.py FILE [CASE ...]

The file consists of 8-byte words, int64 or float64, little endian; arrays of bytes stand as a count
and the bytes, filled up to whole words.

    magic, number of cases
    case:   name bytes, program bytes (engines/cpu/blob.py)
            compute dtype (0 float32, 1 bfloat16), norm (0 rms, 1 max), exact (1: all thresholds
            are 0), moves (1: the window moves)
            float64 tolerance: relative L2 of a buffer against the expected one
            frame: is float, strides of y, x, c in elements
            number of buffers; of each, its height, width, channels and bytes per element (2
            bfloat16, 4 float32)
            number of values; of each, its buffer
            number of steps, bytes of all active sets, number of reported values, bytes of all
            reported change masks (rows of whole 8-byte words)
            number of frames
    frame:  whole, idle (1: no pixel may be active), float64 input threshold, side of the cells
            of the input gate
            thresholds bytes (float64 per value), frame bytes
            bytes of origins, moved, border, valid of `td_slot`, none where they are 0 or null
            number of expected buffers (0: none), their bytes (float32)
            bytes of the expected active sets and change masks, none where they are not compared

Cases with a step that is left to PyTorch have no place here and are counted.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torchdelta
from cases import OP_CASES
from support import around_threshold, compiled, copies, gate_profile, move, new_session
from torchdelta.engines.base import FrameCall, Move, SlotReport
from torchdelta.engines.cpu.blob import foreign_reason, write_program
from torchdelta.engines.cpu.engine import native_move
from torchdelta.plan import Plan
from torchdelta.runtime.inspect import frame_state
from torchdelta.runtime.session import Session

MAGIC = int.from_bytes(b"TDCASES4", "little")
KINDS = ("first", "pixel", "patch", "same", "stripes", "all", "corner", "origin")
FEW = ("first", "patch", "same", "all", "pixel")
# every n-th case also in uint8, in bfloat16, and with thresholds
MORE = 3
# moves of a window in total strides, (y, x), one a frame; the last is a jump beyond its size
WALK = ((0, 0), (1, 2), (0, 0), (-1, 0), (-2, -3), (300, 200))
# side of the input gate's cells in some of the histories, pixels
GRAIN = 3
# a larger state has few frames, and is expected only after the last one: the file stays small
LARGE_BYTES = 30_000
FP32, BF16 = 1e-5, 2e-2
TOLERANCE = 0.05


@dataclass(frozen=True)
class History:
    """One history of an op case; `tolerance` of the session, 0: with expected states.

    moves: the window moves, with exact borders; with a tolerance, parts of the frames are not
           valid, and the input gate counts in cells
    gated: channels of a value whose groups move by a little less and more than their threshold,
           with expected states, instead of an op case
    """

    case: str
    suffix: str = ""
    dtype: torch.dtype = torch.float32
    uint8: bool = False
    tolerance: float = 0.0
    norm: str = "rms"
    kinds: tuple[str, ...] = KINDS
    moves: bool = False
    gated: int = 0

    @property
    def fast(self) -> torchdelta.CompiledModel:
        """The network."""
        return copies(self.gated)[0] if self.gated else compiled(self.case)[0]


# channels below, at and above whole vectors and groups
GATED = (1, 5, 64, 130)


def gate_histories() -> Iterator[History]:
    """List those that show which groups of a pixel are published."""
    for channels in GATED:
        for dtype in (torch.float32, torch.bfloat16):
            for norm in ("rms", "max"):
                suffix = f"-{norm}{'-bf16' * (dtype == torch.bfloat16)}"
                yield History(
                    f"gate-{channels}", suffix, dtype, tolerance=0.1, norm=norm, gated=channels
                )


def histories(cases: Sequence[str]) -> Iterator[History]:
    """List what is written of the cases."""
    for n, case in enumerate(cases):
        yield History(case)
        if n % MORE == 0:
            yield History(case, "-uint8", uint8=True, kinds=FEW)
        elif n % MORE == 1:
            yield History(case, "-bf16", dtype=torch.bfloat16, kinds=FEW)
        else:
            norm = ("rms", "max")[n // MORE % 2]
            yield History(case, f"-gated-{norm}", tolerance=TOLERANCE, norm=norm)
        if n % 2:
            yield History(case, "-moving", moves=True)
        else:
            dtype = (torch.bfloat16, torch.float32)[n // 2 % 2]
            yield History(case, "-moving-gated", dtype, uint8=True, tolerance=TOLERANCE, moves=True)


class Writer:
    """Collects the words of the file."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def words(self, *numbers: int) -> None:
        self.parts.append(struct.pack(f"<{len(numbers)}q", *map(int, numbers)))

    def number(self, number: float) -> None:
        self.parts.append(struct.pack("<d", number))

    def data(self, data: bytes) -> None:
        self.words(len(data))
        self.parts += [data, bytes(-len(data) % 8)]


def reported(plan: Plan) -> list[int]:
    """Give the values whose change masks are asked for: the input and what the outputs hold."""
    outputs = [v for v in plan.outputs if isinstance(v, int)]
    return sorted({plan.input, *(o for v in outputs for o in plan.values[v].owners)})


def write_history(out: Writer, history: History) -> None:
    """Write a case with its frames and the torch engine's states."""
    fast = history.fast
    plan = fast.plan
    profile = torchdelta.Profile(norm=history.norm)
    if history.gated:
        profile = gate_profile(fast, history.norm)
    session = new_session(
        fast, "torch", history.tolerance, profile=profile, dtype=history.dtype,
        grain=GRAIN if history.moves and history.tolerance else 1,
    )  # fmt: skip
    c, h, w = plan.shape
    values = reported(plan)
    exact = history.tolerance == 0
    out.data((history.case + history.suffix).encode())
    out.data(write_program(plan, history.dtype, values))
    out.words(history.dtype == torch.bfloat16, history.norm == "max", exact, history.moves)
    out.number(FP32 if history.dtype == torch.float32 else BF16)
    out.words(not history.uint8, *((w * c, c, 1) if history.uint8 else (w, 1, h * w)))
    out.words(len(plan.buffers))
    for b in plan.buffers:
        out.words(b.h, b.w, b.c, (b.dtype or history.dtype).itemsize)
    out.words(len(plan.values), *(v.buffer for v in plan.values))
    active = sum(prod(plan.values[s.output].size) for s in plan.steps)
    changed = sum(8 * h * -(-w // 64) for h, w in (plan.values[v].size for v in values))
    out.words(len(plan.steps), active, len(values), changed)
    large = plan.state_bytes(torch.float32) > LARGE_BYTES
    if history.gated:
        frames = list(gated_frames(history))
    else:
        still = still_frames(history, large)
        frames = list(moving_frames(plan, history) if history.moves else still)
    out.words(len(frames))
    # what is recomputed is rounded to the same number more often in half precision
    masks = history.gated > 0 or (exact and not history.moves and history.dtype == torch.float32)
    for t, frame in enumerate(frames):
        every = history.gated or (exact and not (large or history.moves))
        wanted = bool(every) or (exact and t == len(frames) - 1)
        write_frame(out, session, frame, expect=wanted, masks=masks)


@dataclass(frozen=True)
class Frame:
    """One frame of a history: pixels [H, W, C] uint8 or float32, and what its window does."""

    pixels: Tensor
    first: bool
    idle: bool = False
    origin: tuple[int, int] | None = None
    move: Move | None = None
    valid: Tensor | None = None


def as_pixels(history: History, x: Tensor) -> Tensor:
    """Make a frame of [C, H, W], as float32 with these strides."""
    if history.dtype == torch.bfloat16:
        x = x.to(torch.bfloat16).float()
    x = x.permute(1, 2, 0)
    return (x * 255).round().to(torch.uint8).contiguous() if history.uint8 else x


def still_frames(history: History, large: bool) -> Iterator[Frame]:
    """Give the frames of a window that stays where it is."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, *history.fast.plan.shape, generator=generator)
    for kind in FEW if large else history.kinds:
        x = move(x, kind, generator)
        yield Frame(as_pixels(history, x[0]), kind == "first", kind == "same")


def gated_frames(history: History) -> Iterator[Frame]:
    """Give a frame, then one of which a group moves, for each group (`around_threshold`)."""
    x = torch.rand(1, 1, 5, 9, generator=torch.Generator().manual_seed(1))
    for _, y, _ in around_threshold(x, copies(history.gated)[1], history.norm, history.dtype):
        yield Frame(as_pixels(history, x[0]), first=True)
        yield Frame(as_pixels(history, y[0]), first=False)


def moving_frames(plan: Plan, history: History) -> Iterator[Frame]:
    """Give the frames of a window that moves over a picture without end."""
    generator = torch.Generator().manual_seed(2)
    c, h, w = plan.shape
    world = torch.rand(1, c, 2 * h + 3, 2 * w + 5, generator=generator)
    y = x = 0
    for t, (dy, dx) in enumerate(WALK):
        shift = dy * plan.total_stride[0], dx * plan.total_stride[1]
        y, x = y + shift[0], x + shift[1]
        world = move(world, ("patch", "same")[t % 2], generator)
        valid = None
        if history.tolerance:
            valid = torch.ones(h, w, dtype=torch.bool)
            valid[h - h // 3 :, : w // 2 + t] = False
        window = world.roll((-y, -x), (2, 3))[0, :, :h, :w].contiguous()
        moved = Move(shift, exact=not history.tolerance) if any(shift) else None
        yield Frame(as_pixels(history, window), not t, origin=(y, x), move=moved, valid=valid)


def write_frame(out: Writer, session: Session, frame: Frame, *, expect: bool, masks: bool) -> None:
    """Run a frame on the torch engine and write it."""
    state, plan = frame_state(session), session.plan
    # in force for this frame; they are measured behind the first one
    thresholds, limit = state.thresholds[0].copy(), state.input_threshold[0]
    if frame.origin is not None:
        state.place(0, frame.origin)
    moves, valid = {0: frame.move} if frame.move else {}, frame.valid
    if frame.first and session.streams:
        session.stream("s").reset()
    report: SlotReport | None = None
    if frame.first or frame.origin is None:
        result = session.step({"s": frame.pixels.permute(2, 0, 1)}, record=True)["s"]
        report = result.report()
    else:
        masks_of = {} if valid is None else {0: valid}
        call = FrameCall({0: frame.pixels.permute(2, 0, 1)}, moved=moves, masks=masks_of)
        session.engine.step(state, call)
    out.words(frame.first, frame.idle)
    out.number(limit)
    out.words(state.input_grain)
    out.data(thresholds.tobytes())
    # uint8 as [H, W, C], float32 as [C, H, W]
    uint8 = frame.pixels.dtype == torch.uint8
    out.data((frame.pixels if uint8 else frame.pixels.permute(2, 0, 1)).numpy().tobytes())
    moved, border = native_move(plan, frame.move) if frame.move else (None, None)
    origins = None if frame.origin is None else state.rings[0]
    for array in (origins, moved, border, None if valid is None else valid.numpy()):
        out.data(b"" if array is None else array.tobytes())
    buffers = state.buffers if expect else []
    out.words(len(buffers))
    for buffer in buffers:
        out.data(expected(buffer))
    if report is None or not masks:
        out.data(b"")
        out.data(b"")
        return
    out.data(active_bytes(plan, report))
    out.data(changed_bytes(plan, report))


def active_bytes(plan: Plan, report: SlotReport) -> bytes:
    """Give the active sets of all steps, a byte for a pixel; a missing one is empty."""
    sizes = [plan.values[step.output].size for step in plan.steps]
    sets = [report.active.get(i, torch.zeros(size)) for i, size in enumerate(sizes)]
    return b"".join(
        mask.bool().expand(size).contiguous().numpy().tobytes()
        for mask, size in zip(sets, sizes, strict=True)
    )


def changed_bytes(plan: Plan, report: SlotReport) -> bytes:
    """Give the change masks of the reported values, in rows of whole 8-byte words."""
    rows = []
    for value in reported(plan):
        h, w = plan.values[value].size
        wide = np.zeros((h, -(-w // 64) * 64), np.bool_)
        if value in report.changed:
            wide[:, :w] = report.changed[value].numpy()
        rows.append(np.packbits(wide, axis=1, bitorder="little").tobytes())
    return b"".join(rows)


def expected(buffer: Tensor) -> bytes:
    """Give one slot's numbers as float32."""
    return buffer[0].float().contiguous().numpy().tobytes()


def main(path: str, names: Sequence[str]) -> int:
    """Write the cases named, or all; returns the exit code."""
    unknown = set(names) - set(OP_CASES)
    if unknown:
        print(f"no such case: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    cases, foreign = [], 0
    for case in names or OP_CASES:
        plan = compiled(case)[0].plan
        if any(foreign_reason(plan, step) for step in plan.steps):
            foreign += 1
        else:
            cases.append(case)
    out = Writer()
    todo = [*histories(cases), *(() if names else gate_histories())]
    out.words(MAGIC, len(todo))
    for history in todo:
        write_history(out, history)
    data = b"".join(out.parts)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    print(f"{path}: {len(todo)} histories of {len(cases)} op cases, {len(data) / 1e6:.0f} MB; "
          f"{foreign} cases left out: they have steps for PyTorch")  # fmt: skip
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
