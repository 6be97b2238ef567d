"""The cpu engine: prepares a native program once, and makes one native call per frame."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchdelta.engines.base import NONE, Done, Engine, FrameCall, Move, SlotReport
from torchdelta.engines.cpu import bind
from torchdelta.engines.cpu.blob import foreign_reason, in_tiles, write_program
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.errors import EngineError
from torchdelta.native_lib import choose_isa, isas
from torchdelta.plan import Plan
from torchdelta.plan.shift import BORDER, UNSEEN
from torchdelta.state import State

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
BF16_ISA = "avx512_bf16"
# what the foreign function returns where PyTorch raised
FAILED = 1
# moves of a window that are kept as the native engine is told them
MOST_MOVES = 64


class CpuEngine(Engine):
    """Runs plans on native kernels; what they do not know (dense steps) PyTorch computes.

    isa: "avx512_bf16", "avx512", "avx2" or "neon"; default: TORCHDELTA_CPU_ISA, else the best
    Raises: EngineError for another device or dtype, or where the library or the ISA is missing.
    """

    name: ClassVar[str] = "cpu"

    def __init__(
        self, plan: Plan, device: torch.device, dtype: torch.dtype, isa: str | None = None
    ) -> None:
        super().__init__(plan, device, dtype)
        self.isa = isa or choose_isa()
        refusal = self._refusal(device, dtype, self.isa)
        if refusal:
            raise EngineError(refusal)
        owners = {
            owner
            for out, shape in zip(plan.outputs, plan.output_shapes, strict=True)
            if shape is not None
            for owner in plan.values[out].owners
        }
        self._reported = sorted(owners | {plan.input})
        self._sizes = [plan.values[step.output].size for step in plan.steps]
        self._mask_sizes = {value: plan.values[value].size for value in self._reported}
        self._foreign = {i for i, s in enumerate(plan.steps) if foreign_reason(plan, s)}
        # nothing else needs the weights a second time
        self._oracle = TorchEngine(plan, device, dtype, only=sorted(self._foreign))
        self._native_move = lru_cache(MOST_MOVES)(partial(native_move, plan))
        self._program = bind.NativeProgram(write_program(plan, dtype, self._reported), self.isa)
        self._slots: weakref.WeakKeyDictionary[State, _Slots] = weakref.WeakKeyDictionary()

    @classmethod
    def usable(cls) -> tuple[bool, str]:
        """It runs where its library was built and the CPU has one of the instruction sets."""
        try:
            return True, f"{choose_isa()}, of {', '.join(isas())}"
        except EngineError as error:
            return False, str(error)

    @classmethod
    def refuses(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot compute on a device or in a dtype; None where it can."""
        return cls._refusal(device, dtype, choose_isa())

    @staticmethod
    def _refusal(device: torch.device, dtype: torch.dtype, isa: str) -> str | None:
        if device.type != "cpu":
            return f"the cpu engine runs on the CPU, the model is on {device}"
        if dtype not in DTYPES:
            return f"the cpu engine computes in {' and '.join(DTYPES.values())}, not in {dtype}"
        if dtype == torch.bfloat16 and isa != BF16_ISA:
            return f"bf16 needs a CPU with AVX512-BF16; the instruction set in use is {isa}"
        return None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, and of those of steps left to PyTorch."""
        return self._program.weight_bytes + self._oracle.weight_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of masks, lists and partial sums that calls have needed so far."""
        return self._program.scratch_bytes

    def evaluate(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Compute one step whole (see `Engine.evaluate`)."""
        return self._oracle.evaluate(step, inputs)

    def foreign_steps(self) -> dict[str, str]:
        """Name the steps that PyTorch computes, each with the reason."""
        steps = self.plan.steps
        return {steps[i].name: foreign_reason(self.plan, steps[i]) or "" for i in self._foreign}

    def notes(self) -> tuple[str, ...]:
        """Say how many convolutions are computed in tiles."""
        tiled = sum(in_tiles(self.plan, step) for step in self.plan.steps)
        if not tiled or self.dtype != torch.float32:
            return ()
        return (
            f"{tiled} convolutions run in tiles of 2x2 pixels (Winograd) where a stream's "
            "tolerance is not 0; they round differently",
        )

    def step(self, state: State, call: FrameCall) -> Done:
        """Run one frame for the slots that have one (see `Engine.step`)."""
        if not call.frames:
            return Done(NONE)
        slots = self._slots.get(state)
        if slots is None:
            slots = self._slots[state] = _Slots(self, state)
        native = _NativeCall(self, state, slots, call)
        step_ms = np.zeros(len(self.plan.steps)) if call.timed else None
        failed = self._program.step(
            native.slots,
            len(call.frames),
            threads=torch.get_num_threads(),
            norm_is_max=int(state.norm == "max"),
            foreign=bind.ForeignFn(native.run_foreign) if self._foreign else bind.NO_FOREIGN,
            step_ms=None if step_ms is None else step_ms.ctypes.data,
        )
        if native.error is not None:
            raise native.error
        if failed:
            raise MemoryError("the native engine ran out of memory")
        return Done(native.reports(step_ms))


class _Slots:
    """What the native engine is told of each slot of a state, the same in every frame.

    given:      td_slot by slot; a frame's own fields are filled in for each call
    counts:     [N, 3, steps] int64, active and published pixels, and published groups
    changed_px: [N, reported values] int64, bits: [N, words] uint64; written by each call, too
    """

    def __init__(self, engine: CpuEngine, state: State) -> None:
        count = len(state.input_threshold)
        words = sum(h * _words(w) for h, w in engine._mask_sizes.values())
        self.counts = np.zeros((count, 3, len(engine._sizes)), dtype=np.int64)
        self.changed_px = np.zeros((count, len(engine._reported)), dtype=np.int64)
        self.bits = np.zeros((count, words), dtype=np.uint64)
        self._addresses = np.array(
            [
                [b.data_ptr() + slot * b.stride(0) * b.element_size() for b in state.buffers]
                for slot in range(count)
            ],
            dtype=np.uint64,
        )
        self.given = [
            bind.Slot(
                buffers=self._addresses[slot].ctypes.data,
                origins=state.rings[slot].ctypes.data,
                thresholds=state.thresholds[slot].ctypes.data,
                input_grain=state.input_grain,
                active_px=self.counts[slot, 0].ctypes.data,
                published_px=self.counts[slot, 1].ctypes.data,
                published_groups=self.counts[slot, 2].ctypes.data,
                changed_px=self.changed_px[slot].ctypes.data,
                changed=self.bits[slot].ctypes.data,
            )
            for slot in range(count)
        ]
        self._forced: Mapping[int, Tensor] | None = None
        self._sets = np.zeros(len(engine._sizes), dtype=np.uint64)
        self._masks: list[Tensor] = []

    def forced_sets(self, forced: Mapping[int, Tensor]) -> int:
        """Give the address of an array of the active sets' addresses, by step.

        The same sets come with every frame that is timed: they are looked at once.
        """
        if forced is not self._forced:
            self._masks = [mask.contiguous() for mask in forced.values()]
            self._sets[:] = 0
            for step, mask in zip(forced, self._masks, strict=True):
                self._sets[step] = mask.data_ptr()
            self._forced = forced
        return int(self._sets.ctypes.data)


class _ChangedMasks(Mapping[int, Tensor]):
    """Change masks by value, kept as bits [h, words] and unpacked when they are read."""

    def __init__(self, bits: dict[int, np.ndarray], widths: dict[int, int]) -> None:
        self._bits, self._widths = bits, widths

    def __getitem__(self, value: int) -> Tensor:
        rows = self._bits[value].view(np.uint8)
        flags = np.unpackbits(rows, axis=1, count=self._widths[value], bitorder="little")
        return torch.from_numpy(flags.view(np.bool_))

    def __contains__(self, value: object) -> bool:
        return value in self._bits

    def __iter__(self) -> Iterator[int]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


class _NativeCall:
    """What one native call is given, and what it gives back."""

    def __init__(self, engine: CpuEngine, state: State, slots: _Slots, call: FrameCall) -> None:
        self._engine, self._state, self._slots, self._call = engine, state, slots, call
        frames, whole = call.frames, call.whole
        self._order = list(frames)
        self.error: BaseException | None = None
        self._active: Tensor | None = None
        if call.record:
            size = sum(map(prod, engine._sizes))
            self._active = torch.zeros((len(frames), size), dtype=torch.bool)
        sets = slots.forced_sets(call.forced) if call.forced else None
        self._moved: Mapping[int, Move] = NONE
        # kept: the native call reads them
        self._kept: list[Any] = []
        self._frames = [_native_frame(frame, engine.plan.shape) for frame in frames.values()]
        self.slots = (bind.Slot * len(frames))()
        for k, (slot, frame) in enumerate(zip(self._order, self._frames, strict=True)):
            self.slots[k] = slots.given[slot]
            given = self.slots[k]
            given.frame = frame.data_ptr()
            given.stride_c, given.stride_y, given.stride_x = frame.stride()
            given.frame_is_float = frame.dtype == torch.float32
            given.whole = slot in whole
            given.exact = state.exact[slot]
            given.input_threshold = state.input_threshold[slot]
            given.active = None if self._active is None else self._active[k].data_ptr()
            given.forced = sets
        if call.moved or call.masks:
            self._set_windows(call.moved, call.masks)

    def _set_windows(self, moved: Mapping[int, Move], masks: Mapping[int, Tensor]) -> None:
        """Say which slots' windows have moved with this frame, and where frames are valid."""
        whole = self._call.whole
        self._moved = {slot: move for slot, move in moved.items() if slot not in whole}
        for k, slot in enumerate(self._order):
            if slot in self._moved:
                moved_px, border = self._engine._native_move(self._moved[slot])
                self.slots[k].moved = moved_px.ctypes.data
                self.slots[k].border = None if border is None else border.ctypes.data
                self._kept += (moved_px, border)
            if slot in masks:
                mask = masks[slot].contiguous()
                self.slots[k].valid = mask.data_ptr()
                self._kept.append(mask)

    @torch.no_grad()
    def run_foreign(self, step: int, index: int, active: int, changed: int) -> int:
        """Compute one step with PyTorch, for one slot; called by the native engine."""
        try:
            slot = self._order[index]
            whole = slot in self._call.whole
            size = self._engine._sizes[step]
            mask, groups = self._engine._oracle.run_step(
                step,
                self._state,
                slot,
                _view(active, size).bool(),
                whole=whole,
                forced=step in self._call.forced and not whole,
                fresh=self._unseen(step, slot),
            )
            if mask is not None:
                _view(changed, size).copy_(mask)
            self._slots.counts[slot, 2, step] = groups
        except BaseException as error:
            # it must not pass through native code
            self.error = error
            return FAILED
        return 0

    def _unseen(self, step: int, slot: int) -> Tensor | None:
        """Mark the pixels of a step that the window has not seen; None where it has not moved."""
        move = self._moved.get(slot)
        if move is None:
            return None
        plan = self._engine.plan
        rows, cols = plan.shifts.lines(plan.steps[step].output, move.shift, move.exact)
        return torch.from_numpy(np.maximum(rows[:, None], cols) == UNSEEN)

    def reports(self, step_ms: np.ndarray | None) -> dict[int, SlotReport]:
        """Say for each slot what was active and what changed."""
        out = {}
        for k, slot in enumerate(self._order):
            active_px, published_px, published_groups = self._slots.counts[slot].tolist()
            work_px = list(active_px) if self._engine._foreign else active_px
            for i in self._engine._foreign:
                work_px[i] = prod(self._engine._sizes[i]) if active_px[i] else 0
            counts = self._slots.changed_px[slot].tolist()
            changed_px = dict(zip(self._engine._reported, counts, strict=True))
            input_px = changed_px[self._engine.plan.input]
            report = SlotReport(
                self._changed(slot, changed_px), active_px, work_px, input_px, published_px,
                published_groups,
            )  # fmt: skip
            out[slot] = report
            if self._active is not None:
                report.active = self._split_active(k, active_px)
            if step_ms is not None:
                report.step_ms = (step_ms / len(self._order)).tolist()
        return out

    def _changed(self, slot: int, changed_px: Mapping[int, int]) -> _ChangedMasks:
        bits, widths, at = {}, {}, 0
        for value, (h, w) in self._engine._mask_sizes.items():
            words = h * _words(w)
            if changed_px[value]:
                # the next frame writes there again
                bits[value] = self._slots.bits[slot, at : at + words].copy().reshape(h, -1)
                widths[value] = w
            at += words
        return _ChangedMasks(bits, widths)

    def _split_active(self, k: int, active_px: Sequence[int]) -> dict[int, Tensor]:
        assert self._active is not None
        sets, at = {}, 0
        for i, size in enumerate(self._engine._sizes):
            if active_px[i]:
                sets[i] = self._active[k, at : at + prod(size)].view(size)
            at += prod(size)
        return sets


def native_move(plan: Plan, move: Move) -> tuple[np.ndarray, np.ndarray | None]:
    """Put a move as `td_slot` has it: `moved` [values, 2] int64, `border` bool, None where kept."""
    shifts = plan.shifts
    moved = shifts.pixels(move.shift)
    sizes = np.array([v.size for v in plan.values], dtype=np.int64)
    moved[shifts.absolute] = sizes[shifts.absolute]
    if not move.exact:
        return moved, None
    lines = [shifts.lines(step.output, move.shift, True) for step in plan.steps]
    return moved, np.concatenate([line for both in lines for line in both]) == BORDER


def _words(width: int) -> int:
    """Count the 64-bit words of a mask's row."""
    return -(-width // 64)


def _native_frame(frame: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if frame.shape != shape:
        # native code would read beyond it
        raise ValueError(f"a frame of shape {tuple(frame.shape)}, expected {shape} [C, H, W]")
    return frame if frame.dtype in (torch.uint8, torch.float32) else frame.float()


def _view(address: int, size: tuple[int, int]) -> Tensor:
    """View bytes of the native engine as a tensor [H, W]."""
    area = prod(size)
    numbers = (ctypes.c_uint8 * area).from_address(address)
    return torch.frombuffer(numbers, dtype=torch.uint8).view(size)
