"""What every engine offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchdelta.ops.base import Size
from torchdelta.plan import Plan
from torchdelta.state import State

NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass
class SlotReport:
    """What one frame of one slot did.

    changed:   change masks by value index, bool [H, W], of the input and of what the outputs are
               made of, at least; a value that is missing did not change
    active_px: active output pixels per step
    work_px:   output pixels per step that the engine really computed
    input_px:  input pixels that were published
    published_px: pixels of which any group was published, per step; None: it does not count them
    published_groups: how many groups of them were published
    active:    active sets by step index, bool [Ho, Wo]; only where they were asked for
    ms:        time that is this slot's alone, milliseconds
    step_ms:   time per step; only where it was asked for
    error:     why the frame was refused after all: nothing of it was published
    """

    changed: Mapping[int, Tensor]
    active_px: list[int]
    work_px: list[int]
    input_px: int
    published_px: list[int] | None = None
    published_groups: list[int] | None = None
    active: dict[int, Tensor] = field(default_factory=dict)
    ms: float = 0.0
    step_ms: list[float] | None = None
    error: str | None = None

    def numbers(self) -> SlotReport:
        """Give the same without masks and active sets."""
        # of every frame: `dataclasses.replace` takes as long as the rest of its bookkeeping
        return SlotReport(
            {}, self.active_px, self.work_px, self.input_px, self.published_px,
            self.published_groups, {}, self.ms, self.step_ms, self.error,
        )  # fmt: skip


@dataclass(frozen=True)
class Move:
    """With this frame a slot's window has moved over the world.

    shift: (dy, dx), input pixels, multiples of `plan.total_stride`, not both 0
    exact: also compute anew what lies at the old and the new edge (border="exact")
    """

    shift: Size
    exact: bool = False


class FrameCall(NamedTuple):
    """One turn of a session, as an engine is told of it.

    frames: slot -> [C, H, W] uint8 or float on the engine's device, already validated; slots
            without a frame stay as they are
    whole:  slots whose every pixel is active and published without comparing
    moved:  slots whose window has moved; state.origin is the new one already. A slot that is
            whole needs none. Of each value the pixels that `plan.shifts.lines(value, shift,
            exact)` names are active as well: UNSEEN ones are published without comparing (all
            of an absolute value's), BORDER ones are gated as always
    masks:  slot -> bool [H, W] on the engine's device: the pixels of the frame that are valid.
            The others are not published (of a whole slot, and where they are unseen, they
            are published as 0 in the network's input). See `ops.gate.input_gate`
    record: keep the active sets;  timed: measure each step
    forced: step index -> bool [Ho, Wo] on the engine's device, the same for all slots that are
            not whole. It replaces the step's active set after that was computed, and every
            active pixel is published; the gate is computed all the same. For `bench --active`,
            which times kernels apart from content
    """

    frames: Mapping[int, Tensor]
    whole: frozenset[int] = frozenset()
    moved: Mapping[int, Move] = NONE
    masks: Mapping[int, Tensor] = NONE
    record: bool = False
    timed: bool = False
    forced: Mapping[int, Tensor] = NONE


class Reports(ABC):
    """What came back of one turn, by slot; where a device is still at it, reading waits for it."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""

    @abstractmethod
    def get(self, slot: int) -> SlotReport:
        """Give a slot's report."""

    @abstractmethod
    def numbers(self) -> Reports:
        """Give the same reports without masks and active sets, which need not be kept for them."""

    @property
    @abstractmethod
    def in_doubt(self) -> bool:
        """Whether the device may refuse a frame."""

    @abstractmethod
    def errors(self) -> Mapping[int, str]:
        """Say of which slots frames were refused after all, and why."""

    @abstractmethod
    def counts(self) -> tuple[np.ndarray, float] | None:
        """Give what many frames' statistics are made of: numbers [steps + 1, N], and ms.

        The numbers of a slot are `active_px`, then `input_px`, and `work_px` is no other; the time
        is each frame's. None: frames are counted one by one, by their reports.
        """


class Done(Reports):
    """The reports of an engine that returns when all is done."""

    ready = True

    def __init__(self, by_slot: Mapping[int, SlotReport]) -> None:
        self._by_slot = by_slot

    def get(self, slot: int) -> SlotReport:
        """Give a slot's report."""
        return self._by_slot[slot]

    def numbers(self) -> Done:
        """Give the same reports without masks and active sets."""
        return Done({slot: report.numbers() for slot, report in self._by_slot.items()})

    @property
    def in_doubt(self) -> bool:
        """Whether a frame was refused."""
        return any(report.error is not None for report in self._by_slot.values())

    def errors(self) -> Mapping[int, str]:
        """Say of which slots frames were refused, and why."""
        return {slot: r.error for slot, r in self._by_slot.items() if r.error is not None}

    def counts(self) -> None:
        """Frames are counted one by one."""


class Engine(ABC):
    """Executes one plan in one dtype on one device; immutable, shared by sessions and threads.

    asynchronous: `step` returns before the device is done; frames may lie on the host, and float
                  frames on the device need no check for finite values
    """

    name: ClassVar[str]
    asynchronous: ClassVar[bool] = False

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self.plan, self.device, self.dtype = plan, device, dtype

    @classmethod
    @abstractmethod
    def usable(cls) -> tuple[bool, str]:
        """Say whether the engine can run here, and why (or why not)."""

    @classmethod
    def refuses(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot compute on a device or in a dtype; None where it can."""
        return None

    @classmethod
    def reluctance(cls) -> str | None:
        """Say why it should run only when asked for by name; None: "auto" may choose it."""
        return None

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of all weights that it computes with, shared by all sessions."""

    @abstractmethod
    def evaluate(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Compute one step whole from its inputs' states [H, W, C], as PyTorch does; gates nothing.

        Weights that the engine does not keep for PyTorch are brought along for this call alone.
        Returns [Ho, Wo, Co] in the output's dtype: what an exact engine would publish.
        """

    @property
    def scratch_bytes(self) -> int:
        """Bytes that frames need beside the state (masks, lists), 0 where they are not kept."""
        return 0

    def channel_room(self) -> list[int]:
        """Give the channels per buffer that a pixel's place in the state has room for."""
        return [b.c for b in self.plan.buffers]

    def foreign_steps(self) -> dict[str, str]:
        """Name the steps that the engine leaves to PyTorch, each with the reason."""
        return {}

    def whole_steps(self) -> dict[str, str]:
        """Name those of them that are computed whole even where nothing changed, and when."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Say what else `explain()` should tell about how frames run."""
        return ()

    @abstractmethod
    def step(self, state: State, call: FrameCall) -> Reports:
        """Run one frame for the slots that have one.

        state: written in place. Masks, active sets and forced sets are in reading order of the
               window; only the state's pixels lie on rings (`state.rings`)
        """
