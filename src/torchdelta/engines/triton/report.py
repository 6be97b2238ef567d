"""What a frame did, on its way from the device: counters, masks and times, read when asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from torchdelta.engines.base import Reports, SlotReport
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.program import Program

REFUSED = "frame has NaN or infinite values, or values beyond the compute dtype's range"


class FrameNumbers(Reports):
    """What was counted in one frame of a session: the reports of its slots, without masks.

    info: int32 numbers on the host (pinned), there once the second event has happened
    bad:  int32 [slots], 1 where a frame had values that are not finite; None: none was checked

    That memory and the events are a later frame's again: `settle` is called before.
    """

    def __init__(
        self,
        program: Program,
        slots: Sequence[int],
        info: Tensor,
        bad: Tensor | None,
        events: tuple[torch.cuda.Event, torch.cuda.Event] | None,
        step_ms: Sequence[float] | None,
    ) -> None:
        self._program, self.slots = program, slots
        self._info, self._bad, self._events = info, bad, events
        self._step_ms = step_ms
        self._checked = bad is not None
        self._errors: dict[int, str] = {}
        self._settling = threading.Lock()
        # [steps + 1, slots], and by slot: pixels of all steps, then of the input
        self._table: np.ndarray | None = None
        self._counts: list[list[int]] | None = None
        self._finished = False
        self._ms = 0.0

    @property
    def ready(self) -> bool:
        """Whether the device is done with the frame."""
        # another thread may settle it meanwhile
        events = self._events
        return self._finished or events is None or events[1].query()

    def settle(self) -> None:
        """Wait for the frame, and take its numbers from the memory that frames share."""
        if self._finished:
            return
        with self._settling:
            if self._finished:
                return
            if self._events is not None:
                start, end = self._events
                end.synchronize()
                self._ms = start.elapsed_time(end) / len(self.slots)
            self._table = self._info.numpy().reshape(len(self._program.plan.steps) + 1, -1).copy()
            if self._bad is not None:
                bad = self._bad.tolist()
                self._errors = {slot: REFUSED for slot in self.slots if bad[slot]}
            self._finished = True
            self._events = None

    def _taken(self) -> np.ndarray:
        """Wait, and give the table of numbers."""
        self.settle()
        assert self._table is not None
        return self._table

    def numbers(self) -> FrameNumbers:
        """Give the same: masks are kept elsewhere."""
        return self

    @property
    def in_doubt(self) -> bool:
        """Whether the device may have refused a frame."""
        return self._checked

    def errors(self) -> Mapping[int, str]:
        """Wait, and say which slots' frames were refused (see `Reports`)."""
        if self._checked:
            self.settle()
        return self._errors

    def counts(self) -> tuple[np.ndarray, float] | None:
        """Wait, and give the frames' numbers and their time (see `Reports`)."""
        if self._step_ms is not None or self._program.foreign or self.errors():
            return None
        return self._taken(), self._ms

    def get(self, slot: int) -> SlotReport:
        """Wait, and say what the frame did in one slot."""
        return self.report(slot, {}, {})

    def report(
        self, slot: int, changed: Mapping[int, Tensor], active: dict[int, Tensor]
    ) -> SlotReport:
        """Wait, and say what the frame did in one slot, with its masks."""
        table = self._taken()
        if self._counts is None:
            self._counts = table.T.tolist()
        *active_px, input_px = self._counts[slot]
        work_px = active_px
        if self._program.foreign:
            plan = self._program.plan
            work_px = [
                prod(plan.values[plan.steps[i].output].size) if i in self._program.foreign else px
                for i, px in enumerate(active_px)
            ]
        return SlotReport(
            changed, active_px, work_px, input_px, active=active, ms=self._ms,
            step_ms=None
            if self._step_ms is None
            else [t / len(self.slots) for t in self._step_ms],
            error=self._errors.get(slot),
        )  # fmt: skip


class DeviceReports(Reports):
    """A turn's reports, with masks that are taken when they are asked for."""

    def __init__(self, numbers: FrameNumbers, frame: Frame) -> None:
        self._numbers, self._frame = numbers, frame
        self._number, self._now = frame.memory.frame, frame.memory.now
        self._kept: Tensor | None = None
        self._active: dict[int, dict[int, Tensor]] = {}

    @property
    def ready(self) -> bool:
        """Whether reading them does not wait."""
        return self._numbers.ready

    def numbers(self) -> FrameNumbers:
        """Give the same reports without masks and active sets, which need not be kept for them."""
        return self._numbers

    @property
    def in_doubt(self) -> bool:
        """Whether the device may have refused a frame."""
        return self._numbers.in_doubt

    def errors(self) -> Mapping[int, str]:
        """Wait, and say which slots' frames were refused (see `Reports`)."""
        return self._numbers.errors()

    def counts(self) -> tuple[np.ndarray, float] | None:
        """Wait, and give the frames' numbers and their time (see `Reports`)."""
        return self._numbers.counts()

    def get(self, slot: int) -> SlotReport:
        """Wait for the frame and give a slot's report."""
        return self._numbers.report(slot, _Masks(self, slot), self._active.get(slot, {}))

    def mask(self, value: int) -> Tensor:
        """Give a value's change masks, bool [slots, H, W]."""
        size = self._frame.plan.values[value].size
        first = self._frame.memory.reported_at[value]
        kept = self.keep_masks()
        return kept[first : first + self._frame.slots * prod(size)].view(-1, *size)

    def keep_masks(self) -> Tensor:
        """Take the masks that may be asked for, bytes side by side, in one call.

        Stamps hold until the session's next frame: this is called before that.
        """
        if self._kept is None:
            if self._number != self._frame.memory.frame:
                raise RuntimeError("the change masks of this frame were not kept")
            self._kept = self._frame.memory.reported == self._now
        return self._kept

    def keep_active(self) -> None:
        """Take the active sets of all steps."""
        frame, memory = self._frame, self._frame.memory
        for index, use in enumerate(frame.schedule.uses):
            size = frame.plan.values[frame.plan.steps[index].output].size
            if use.filters:
                masks = torch.stack([memory.stamps[v] == self._now for v in use.filters]).any(0)
            else:
                masks = frame.listed(index)
            masks = masks.view(-1, *size)
            for slot in self._numbers.slots:
                self._active.setdefault(slot, {})[index] = masks[slot]


class _Masks(Mapping[int, Tensor]):
    """The change masks of one slot by value, made when they are read."""

    def __init__(self, reports: DeviceReports, slot: int) -> None:
        self._reports, self._slot = reports, slot
        self._values = reports._frame.program.reported

    def __getitem__(self, value: int) -> Tensor:
        if value not in self._values:
            raise KeyError(value)
        return self._reports.mask(value)[self._slot]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
