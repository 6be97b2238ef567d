"""What the host says of each frame, in memory that the frame's first kernel reads it from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchdelta.engines.triton.kernels import control as kernels
from torchdelta.engines.triton.kernels.shared import FRAME, NOTHING, WHOLE
from torchdelta.engines.triton.launch import Launch
from torchdelta.engines.triton.memory import FRAME_ROW, MODES_AT, RING, SERIAL_AT, Memory

# numbers of a block that the kernel takes at once
MOST_NUMBERS = 512
# slots, those that are computed whole, which frames are float32, strides of the frames
Layout = tuple[tuple[int, ...], frozenset[int], list[bool], list[tuple[int, ...]]]


class Control:
    """The control blocks of a session, by turn.

    A kernel takes them, not a copy: a call into PyTorch for each frame takes the host longer than
    all else that it does before the graph starts.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        numbers = memory.ctl.numel()
        self._sent = torch.zeros(RING, numbers, dtype=torch.int64, pin_memory=memory.ctl.is_cuda)
        # Python writes single numbers faster that way than into arrays
        self._blocks = [memoryview(block) for block in self._sent.numpy()]
        self._layouts: list[Layout | None] = [None] * RING
        # by turn: where the frames' addresses stand
        self._addresses: list[list[int]] = [[] for _ in range(RING)]

    def is_laid_out(self, turn: int, layout: Layout) -> bool:
        """Whether a turn's block says that already, but for the frames' addresses."""
        return layout == self._layouts[turn]

    def lay_out(self, turn: int, layout: Layout) -> None:
        """Say which slots have a frame, and how those lie in memory."""
        slots, whole, floats, strides = layout
        block, count = self._blocks[turn], self._memory.slots
        self._layouts[turn] = None
        for slot in range(count):
            block[MODES_AT + slot] = NOTHING
        rows = [MODES_AT + count + slot * FRAME_ROW for slot in slots]
        for slot, row, is_float, (c, y, x) in zip(slots, rows, floats, strides, strict=True):
            block[MODES_AT + slot] = WHOLE if slot in whole else FRAME
            for n, number in enumerate((y, x, c, is_float), start=1):
                block[row + n] = number
        self._addresses[turn] = rows
        self._layouts[turn] = layout

    def send(self, turn: int, frames: Sequence[Tensor]) -> None:
        """Let the next frame's first kernel take a turn's block; frames: of the slots laid out."""
        block, memory = self._blocks[turn], self._memory
        for at, frame in zip(self._addresses[turn], frames, strict=True):
            block[at] = frame.data_ptr()
        block[0] = memory.now
        # last: before that the block is not one to be taken
        block[SERIAL_AT] = memory.frame

    def take_back(self, turn: int) -> None:
        """Let no kernel take a turn's block any more."""
        self._blocks[turn][SERIAL_AT] = 0

    def launch(self) -> Launch:
        """Make the launch that takes a block."""
        numbers = self._sent.shape[1]
        size = min(MOST_NUMBERS, 1 << (numbers - 1).bit_length())
        return Launch(
            kernels.take_control, 1,
            {"ctl_ptr": self._memory.ctl, "sent_ptr": self._sent, "numbers": numbers,
             "TURNS": RING, "BS": size},
        )  # fmt: skip
