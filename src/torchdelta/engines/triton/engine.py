"""The triton engine: one CUDA graph per session, no host synchronisation inside a frame."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from torchdelta.engines.base import NONE, Done, Engine, FrameCall, Reports
from torchdelta.engines.triton.gpu import Gpu, is_interpreted, too_old
from torchdelta.engines.triton.schedule import make_lanes
from torchdelta.plan import Plan
from torchdelta.state import State

if TYPE_CHECKING:
    from torchdelta.engines.triton.runner import Runner

# the engine's device is the current one already
CURRENT = nullcontext()

# Triton and the kernels are imported when an engine is made: a CPU machine never needs them


class TritonEngine(Engine):
    """Runs plans on NVIDIA GPUs (compute capability 8.0 and newer), all slots in each launch.

    tf32: multiply float32 in TF32; default: IEEE float32
    Raises: EngineError for another device or dtype.
    """

    name: ClassVar[str] = "triton"
    asynchronous: ClassVar[bool] = True

    def __init__(
        self, plan: Plan, device: torch.device, dtype: torch.dtype, tf32: bool = False
    ) -> None:
        from torchdelta.engines.triton.load import load

        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        super().__init__(plan, device, dtype)
        self.program = load(plan, Gpu.of(device, dtype, tf32))
        self.runners: weakref.WeakKeyDictionary[State, Runner] = weakref.WeakKeyDictionary()

    @classmethod
    def usable(cls) -> tuple[bool, str]:
        """It runs where a GPU of compute capability 8.0 is, or in Triton's interpreter."""
        try:
            found = f"Triton {version('triton')}"
        except PackageNotFoundError:
            return (
                False,
                "Triton is not installed: pip install triton (Linux, with PyTorch for CUDA)",
            )
        if is_interpreted():
            return True, f"{found}, interpreted on the CPU (TRITON_INTERPRET=1)"
        if not torch.cuda.is_available():
            return False, "PyTorch finds no GPU"
        refusals = [too_old(n) for n in range(torch.cuda.device_count())]
        if all(refusals):
            return False, "; ".join(dict.fromkeys(filter(None, refusals)))
        names = [torch.cuda.get_device_name(n) for n, old in enumerate(refusals) if not old]
        return True, f"{found} on {', '.join(dict.fromkeys(names))}"

    @classmethod
    def refuses(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot compute on a device or in a dtype; None where it can."""
        wanted = "cpu" if is_interpreted() else "cuda"
        if device.type != wanted:
            return f"the triton engine runs on {wanted} here, the model is on {device}"
        return None if is_interpreted() else too_old(device)

    @classmethod
    def reluctance(cls) -> str | None:
        """The interpreter is for tests."""
        return "its kernels would be interpreted" if is_interpreted() else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, packed and not, with those of steps left to PyTorch."""
        return self.program.weight_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of stamps, lists and partial sums of all sessions."""
        return sum(runner.bytes for runner in self.runners.values())

    def channel_room(self) -> list[int]:
        """Give the channels per buffer that a pixel's place in the state has room for."""
        from torchdelta.engines.triton.pack import padded_channels

        of_input = self.plan.values[self.plan.input].buffer
        return [
            padded_channels(b.c) if i == of_input else b.c for i, b in enumerate(self.plan.buffers)
        ]

    def evaluate(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Compute one step whole (see `Engine.evaluate`)."""
        return self.program.oracle.evaluate(step, inputs)

    def foreign_steps(self) -> dict[str, str]:
        """Name the steps that PyTorch computes, each with the reason."""
        return {self.plan.steps[i].name: reason for i, reason in self.program.foreign.items()}

    def whole_steps(self) -> dict[str, str]:
        """Name the steps that are computed whole in every frame, and which split the CUDA graph."""
        return {
            self.plan.steps[i].name: "in every frame, for every slot"
            if i not in self.program.uncaptured
            else f"for every slot with a frame, between CUDA graphs: {self.program.uncaptured[i]}"
            for i in self.program.foreign
        }

    def notes(self) -> tuple[str, ...]:
        """Say how many lanes a frame's graph has."""
        lanes = make_lanes(self.plan, self.program.shared, self.program.most_lanes).count
        one = ": steps are left to PyTorch" if self.program.foreign else ""
        return (f"a frame's CUDA graph runs in {lanes} lane{'s' if lanes > 1 else one}",)

    def step(self, state: State, call: FrameCall) -> Reports:
        """Run one frame for the slots that have one (see `Engine.step`).

        frames may also be on the CPU: they are copied through pinned memory.
        """
        if not call.frames:
            return Done(NONE)
        # Triton, events and captures work on the current device
        with self._current():
            runner = self.runners.get(state)
            if runner is None:
                from torchdelta.engines.triton.runner import Runner

                runner = self.runners[state] = Runner(self.program, state)
            return runner.step(state, call)

    def _current(self) -> AbstractContextManager[object]:
        """Make the engine's device the current one; where it is, that costs next to nothing."""
        if self.program.gpu.interpreted or torch.cuda.current_device() == self.device.index:
            return CURRENT
        return torch.cuda.device(self.device)
