"""All launches of a frame, in the order in which they run."""

from __future__ import annotations

import torch

from torchdelta.engines.triton import convolutions, input_gate, rows, select
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.launch import Launch, Work
from torchdelta.engines.triton.memory import Memory
from torchdelta.engines.triton.program import Program
from torchdelta.engines.triton.schedule import INPUT, Schedule
from torchdelta.engines.triton.windows import Windows
from torchdelta.state import State


def make_frame(
    program: Program,
    state: State,
    memory: Memory,
    schedule: Schedule,
    forced: frozenset[int],
    windows: Windows | None,
) -> Frame:
    """Make a kind of frame with all its launches (see `Frame`)."""
    frame = Frame(program, state, memory, schedule, forced, windows)
    work: list[tuple[int | None, list[Work]]] = [(None, input_gate.launches(frame))]
    for index in range(len(frame.plan.steps)):
        part: list[Work] = []
        if index in frame.schedule.selections:
            part += select.launches(frame, frame.schedule.selections[index])
        part += _step(frame, index)
        work.append((index, part))
    work.append((None, select.count_launches(frame)))
    for step, (_, part) in enumerate(work, start=INPUT):
        if step in frame.lanes.waits and part:
            first = part[0]
            assert isinstance(first, Launch)
            part[0] = first.behind()
    frame.work = work
    return frame


def _step(frame: Frame, index: int) -> list[Work]:
    if index in frame.program.packed:
        return list(convolutions.launches(frame, index, frame.program.packed[index]))
    if index in frame.program.foreign:
        return _foreign(frame, index)
    return list(rows.launches(frame, index))


def _foreign(frame: Frame, index: int) -> list[Work]:
    """Let PyTorch compute a step whole; gate and publish as always.

    For the slots that have a frame, in a graph for all of them: what changed the host never
    knows.
    """
    plan, step = frame.plan, frame.plan.steps[index]
    v = plan.values[step.output]
    scratch = torch.zeros(
        (frame.slots, *v.size, v.channels),
        dtype=v.dtype or frame.gpu.dtype,
        device=frame.gpu.device,
    )
    frame.bytes += scratch.numel() * scratch.element_size()
    frame.constants.append(scratch)

    @torch.no_grad()
    def compute() -> None:
        for slot in frame.memory.given:
            inputs = [frame.window(value, slot) for value in step.inputs]
            scratch[slot].copy_(frame.program.oracle.evaluate(index, inputs))

    return [compute, *rows.publish_launches(frame, index, scratch)]
