"""Runs the frames of one session: sends them, replays the graph, hands out reports."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor
from triton.runtime import driver

from torchdelta.engines.base import NONE, FrameCall
from torchdelta.engines.triton.control import Control, Layout
from torchdelta.engines.triton.frame import Frame
from torchdelta.engines.triton.input_gate import check_launches
from torchdelta.engines.triton.launch import Launch, Work
from torchdelta.engines.triton.memory import RING, Memory
from torchdelta.engines.triton.program import Program
from torchdelta.engines.triton.report import DeviceReports, FrameNumbers
from torchdelta.engines.triton.schedule import INPUT, make_schedule
from torchdelta.engines.triton.windows import Windows
from torchdelta.engines.triton.work import make_frame
from torchdelta.state import State

# how far apart a frame's numbers may lie: kernels count in 32 bits
FARTHEST = 2**31 - 1

# of a tensor, all at once
KIND = attrgetter("dtype", "is_cuda")

# PyTorch captures one graph at a time
CAPTURING = threading.Lock()

# which steps' active sets are forced, whether steps share lists, whether windows may have moved
Variant = tuple[frozenset[int], bool, bool]


class Runner:
    """One session's frames.

    The first frame of each kind (forced or not, with float frames or without) runs kernel by
    kernel, which compiles and warms up all of them; the second one is captured as a CUDA graph.
    """

    def __init__(self, program: Program, state: State) -> None:
        self.program, self._device = program, program.gpu.device
        self.memory = Memory(program, state)
        self._on_gpu = program.gpu.device.type == "cuda"
        self._staging = _Staging(program) if self._on_gpu else None
        self._control = Control(self.memory)
        # by turn, used again once the frame of that turn is done: where numbers come back, and when
        counted = (len(program.plan.steps) + 1) * self.memory.slots
        self._info = self._on_host(torch.int32, counted)
        self._bad = self._on_host(torch.int32, self.memory.slots)
        self._events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            if self._on_gpu
            else None
            for _ in range(RING)
        ]
        self._numbers: list[FrameNumbers | None] = [None] * RING
        # frames that the device may still read
        self._kept: list[list[Tensor]] = [[] for _ in range(RING)]
        self._turn = 0
        # the stream that was the current one last: its number in the driver, and PyTorch's object
        self._current: tuple[int, torch.cuda.Stream] | None = None
        # how often the thresholds had changed when they were sent
        self._sent = -1
        self._threshold_hosts = {
            name: self._on_host(torch.float32, *shape)
            for name, shape in (
                ("values", state.thresholds.shape),
                ("input", state.input_threshold.shape),
            )
        }
        self._frames: dict[Variant, Frame] = {}
        self._graphs: dict[tuple[Variant, bool], list[Work]] = {}
        self._warm: set[tuple[Variant, bool]] = set()
        self._forced: Mapping[int, Tensor] = NONE
        # the last kind of frame, and the forced sets that it was chosen for
        self._kind: tuple[Mapping[int, Tensor], Variant] | None = None
        # from the first window that moves or frame that has a mask
        self._windows: Windows | None = None
        self._last: weakref.ref[DeviceReports] | None = None

    def _on_host(self, dtype: torch.dtype, *shape: int) -> list[Tensor]:
        """Allocate memory that frames are sent from or counted in, for each turn."""
        return [torch.zeros(shape, dtype=dtype, pin_memory=self._on_gpu) for _ in range(RING)]

    @property
    def bytes(self) -> int:
        """Bytes of everything but the state."""
        windows = 0 if self._windows is None else self._windows.bytes
        return self.memory.bytes + windows + sum(frame.bytes for frame in self._frames.values())

    def step(self, state: State, call: FrameCall) -> DeviceReports:
        """Run one frame (see `Engine.step`)."""
        last = self._last() if self._last is not None else None
        if last is not None:
            last.keep_masks()
        self._turn = (self._turn + 1) % RING
        numbers = self._numbers[self._turn]
        if numbers is not None:
            numbers.settle()
        events, stream = self._events[self._turn], self._stream() if self._on_gpu else None
        if events is not None:
            events[0].record(stream)
        floats = self._send(call, stream)
        self._send_thresholds(state)
        self._send_windows(state, call)
        variant = self._variant(call.forced)
        if variant not in self._frames:
            own, share, moving = variant
            schedule = make_schedule(self.program.plan, share=share, moving=moving)
            self._frames[variant] = make_frame(
                self.program, state, self.memory, schedule, own, self._windows
            )
        frame = self._frames[variant]
        self._force(frame, call.forced)
        step_ms = None
        if call.timed or not self._on_gpu or (variant, floats) not in self._warm:
            step_ms = self._run(frame, floats, call.timed)
            self._warm.add((variant, floats))
        else:
            self._replay(frame, variant, floats)
        info = self._info[self._turn].copy_(frame.info, non_blocking=True)
        bad = self._bad[self._turn].copy_(self.memory.bad, non_blocking=True) if floats else None
        if events is not None:
            events[1].record(stream)
        numbers = FrameNumbers(self.program, tuple(call.frames), info, bad, events, step_ms)
        self._numbers[self._turn] = numbers
        reports = DeviceReports(numbers, frame)
        if call.record:
            reports.keep_active()
        self._last = weakref.ref(reports)
        # while this frame is under way: the next one takes the memory of the oldest
        oldest = self._numbers[(self._turn + 1) % RING]
        if oldest is not None and oldest.ready:
            oldest.settle()
        return reports

    def _stream(self) -> torch.cuda.Stream:
        """Give the device's current stream; asking PyTorch for it takes longer."""
        number = driver.active.get_current_stream(self._device.index)
        if self._current is None or number != self._current[0]:
            self._current = number, torch.cuda.current_stream(self._device)
        return self._current[1]

    def _send(self, call: FrameCall, stream: torch.cuda.Stream | None) -> bool:
        """Send frames of the host, and the control block; returns whether some are float."""
        memory, control, turn = self.memory, self._control, self._turn
        memory.tick()
        slots = tuple(call.frames)
        memory.given = slots
        given, floats = self._taken(call.frames)
        layout: Layout = slots, call.whole, floats, list(map(Tensor.stride, given))
        if not control.is_laid_out(turn, layout):
            given = [x.contiguous() if self._is_far(x.stride()) else x for x in given]
            layout = slots, call.whole, floats, list(map(Tensor.stride, given))
            control.lay_out(turn, layout)
        self._kept[turn] = given
        control.send(turn, given, 0 if stream is None else stream.cuda_stream)
        if self._staging is not None:
            self._staging.wait()
        return any(floats)

    def _taken(self, frames: Mapping[int, Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Bring frames [C, H, W] to the device, as uint8 or float32; copies are under way then.

        returns: them, and which are float32
        """
        if set(map(KIND, frames.values())) == {(torch.uint8, self._on_gpu)}:
            return list(frames.values()), [False] * len(frames)
        given = []
        for slot, taken in frames.items():
            frame = taken if taken.dtype == torch.uint8 else taken.float()
            if self._staging is not None and not frame.is_cuda:
                frame = self._staging.send(slot, self._turn, frame)
            given.append(frame)
        return given, [frame.dtype != torch.uint8 for frame in given]

    def _is_far(self, strides: tuple[int, ...]) -> bool:
        """Whether numbers of a frame lie farther apart than kernels can count."""
        shape = self.program.plan.shape
        return sum(n * stride for n, stride in zip(shape, strides, strict=True)) > FARTHEST

    def _send_thresholds(self, state: State) -> None:
        if self._sent == state.changes:
            return
        self._sent = state.changes
        self._send_numbers("values", state.thresholds, self.memory.thresholds)
        self._send_numbers("input", state.input_threshold, self.memory.input_threshold)

    def _send_numbers(self, name: str, numbers: np.ndarray, to: Tensor) -> None:
        host = self._threshold_hosts[name][self._turn]
        host.numpy()[:] = numbers
        to.copy_(host, non_blocking=True)

    def _send_windows(self, state: State, call: FrameCall) -> None:
        """Send where the windows lie; from the first one that moves the frames are of that kind."""
        if self._windows is None:
            if not call.moved and not call.masks and not state.turned:
                return
            self._windows = Windows(self.program.plan, self.memory.slots, self._device, RING)
        self._windows.send(self._turn, state, call)

    def _variant(self, forced: Mapping[int, Tensor]) -> Variant:
        """Choose the kind of frame; forced sets must agree where steps share a list."""
        steps, moving = self.program.plan.steps, self._windows is not None
        if not forced:
            return frozenset(), True, moving
        # the same sets come with every frame that is timed
        if self._kind is not None and self._kind[0] is forced and self._kind[1][2] == moving:
            return self._kind[1]
        agree = len(forced) == len(steps) and all(
            forced[i] is forced[use.leader] for i, use in enumerate(self.program.shared.uses)
        )
        self._kind = forced, (frozenset(forced), agree, moving)
        return self._kind[1]

    def _force(self, frame: Frame, forced: Mapping[int, Tensor]) -> None:
        """Put forced active sets where the select kernels read them."""
        if forced is self._forced:
            return
        before, self._forced = self._forced, forced
        if not forced and not before:
            return
        steps = self.program.plan.steps
        flags = torch.zeros(self.memory.forced.shape, dtype=torch.int32)
        flags[[steps[index].output for index in forced]] = 1
        self.memory.forced.copy_(flags)
        for index, mask in frame.forced_masks.items():
            mask.copy_(forced[index].flatten())

    def _run(self, frame: Frame, floats: bool, timed: bool) -> Sequence[float] | None:
        """Launch kernel by kernel; returns the time of each step where it is asked for."""
        step_ms = [0.0] * len(self.program.plan.steps)
        if floats:
            _do(check_launches(frame))
        for index, work in frame.work:
            if timed and self._on_gpu:
                torch.cuda.synchronize(self._device)
            begin = time.perf_counter()
            _do(work)
            if timed and self._on_gpu:
                torch.cuda.synchronize(self._device)
            if index is not None:
                step_ms[index] = (time.perf_counter() - begin) * 1e3
        return step_ms if timed else None

    def _replay(self, frame: Frame, variant: Variant, floats: bool) -> None:
        key = variant, floats
        if key not in self._graphs:
            checks = check_launches(frame) if floats else []
            if frame.lanes.count > 1:
                sides = [torch.cuda.Stream(self._device) for _ in range(1, frame.lanes.count)]
                self._graphs[key] = [self._graph([lambda: self._run_lanes(frame, checks, sides)])]
            else:
                work = [(i, item) for i, part in [(None, checks), *frame.work] for item in part]
                self._graphs[key] = self._capture(work)
        _do(self._graphs[key])

    def _run_lanes(
        self, frame: Frame, checks: Sequence[Work], sides: Sequence[torch.cuda.Stream]
    ) -> None:
        """Launch a frame's work: the first lane's on the current stream, the others' on `sides`.

        A capture makes edges of its graph of what streams wait for.
        """
        lanes = frame.lanes
        streams = [torch.cuda.current_stream(self._device), *sides]
        done: dict[int, torch.cuda.Event] = {}
        _do(checks)
        for step, (_, work) in enumerate(frame.work, start=INPUT):
            stream = streams[lanes.lane(step)]
            for other in lanes.waits.get(step, ()):
                stream.wait_event(done[other])
            with torch.cuda.stream(stream):
                _do(work)
            if step in lanes.awaited:
                done[step] = stream.record_event()

    def _capture(self, work: Sequence[tuple[int | None, Work]]) -> list[Work]:
        """Make one graph of the work of steps; what cannot be captured stays between graphs."""
        parts: list[Work] = []
        run: list[Work] = []
        given = self.memory.given
        # a graph serves every frame, whichever slots have one
        self.memory.given = range(self.memory.slots)
        for index, item in work:
            if isinstance(item, Launch) or self._capturable(index, item):
                run.append(item)
                continue
            if run:
                parts.append(self._graph(run))
            parts.append(item)
            run = []
        if run:
            parts.append(self._graph(run))
        self.memory.given = given
        return parts

    def _capturable(self, index: int | None, item: Work) -> bool:
        """Try whether a call into PyTorch can be captured; the program remembers which cannot."""
        try:
            self._graph([item])
        except RuntimeError as error:
            causes = _causes(error)
            if any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
                raise
            torch.cuda.synchronize(self._device)
            if index is not None:
                # behind the first line is PyTorch's advice on how to debug
                self.program.uncaptured.setdefault(index, str(causes[-1]).partition("\n")[0])
            return False
        return True

    def _graph(self, work: Sequence[Work]) -> Work:
        """Capture work as a CUDA graph; returns its replay."""
        graph = torch.cuda.CUDAGraph()
        device = self._device
        # PyTorch's own stream for captures belongs to the device that was current at the first one
        stream = torch.cuda.Stream(device)
        with (
            CAPTURING,
            _no_collection(),
            # PyTorch before 2.15 stays on the capture's stream where a capture fails
            torch.cuda.stream(torch.cuda.current_stream(device)),
            # other threads go on with their sessions: only this one's calls are restricted
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            _do(work)
        return graph.replay


def _do(work: Sequence[Work]) -> None:
    for item in work:
        item()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage: freeing another graph would end a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _causes(error: BaseException) -> list[BaseException]:
    """List an error and those in whose handling it came up; the last one is the first."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(cause)
    return found


class _Staging:
    """Frames of the host on their way to the device: pinned memory, and a stream of its own."""

    def __init__(self, program: Program) -> None:
        self._shape = (*program.plan.size, program.plan.shape[0])
        self._device = program.gpu.device
        # of another pool than the streams that graphs are captured on, maybe by another thread
        self._stream = torch.cuda.Stream(program.gpu.device, priority=-1)
        self._buffers: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._sent = False

    def send(self, slot: int, turn: int, frame: Tensor) -> Tensor:
        """Copy a host frame [C, H, W] to the device; the copy is under way when this returns."""
        key = slot, turn, frame.dtype
        if key not in self._buffers:
            self._buffers[key] = (
                torch.empty(self._shape, dtype=frame.dtype, pin_memory=True).permute(2, 0, 1),
                torch.empty(self._shape, dtype=frame.dtype, device=self._device).permute(2, 0, 1),
            )
            # who had this memory before may not be done with it
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        pinned, on_device = self._buffers[key]
        pinned.copy_(frame)
        with torch.cuda.stream(self._stream):
            on_device.copy_(pinned, non_blocking=True)
        self._sent = True
        return on_device

    def wait(self) -> None:
        """Let the current stream wait for the copies."""
        if self._sent:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._sent = False
