"""The triton engine: one CUDA graph per session, no host synchronisation inside a frame."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from torchdelta.engines.base import NONE, Done, Engine, FrameCall, Reports
from torchdelta.engines.torch_engine import TorchEngine
from torchdelta.engines.triton.schedule import (
    MOST_LANES,
    make_lanes,
    make_schedule,
    sources_of,
)
from torchdelta.engines.weights import Weights
from torchdelta.errors import EngineError
from torchdelta.ops import Conv2d, ConvTranspose2d, Dense
from torchdelta.plan import Plan
from torchdelta.plan.ir import Step
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
        from torchdelta.engines.triton import conv, rows

        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        super().__init__(plan, device, dtype)
        self.interpreted = is_interpreted()
        if device.type != ("cpu" if self.interpreted else "cuda"):
            raise EngineError(f"the triton engine runs on NVIDIA GPUs, the model is on {device}")
        self.precision = "tf32" if tf32 and dtype == torch.float32 else "ieee"
        self.pdl = not self.interpreted and torch.cuda.get_device_capability(device) >= (9, 0)
        self.processors = (
            4 if self.interpreted
            else torch.cuda.get_device_properties(device).multi_processor_count
        )  # fmt: skip
        self.foreign = {
            i: reason for i, s in enumerate(plan.steps) if (reason := foreign_reason(plan, s))
        }
        self._weights = Weights(device, dtype)
        self.oracle = TorchEngine(plan, device, dtype, sorted(self.foreign), self._weights)
        # what PyTorch does inside a frame it does on one stream
        self.most_lanes = 1 if self.foreign else MOST_LANES
        # steps of `foreign` that PyTorch cannot capture, with its words; found out when it tries
        self.uncaptured: dict[int, str] = {}
        self.packed = {
            i: conv.pack(plan, step, device, dtype)
            for i, step in enumerate(plan.steps)
            if i not in self.foreign and isinstance(step.op, (Conv2d, ConvTranspose2d))
        }
        self.weights = {
            i: rows.take_weights(plan, step, self._weights)
            for i, step in enumerate(plan.steps)
            if i not in self.foreign and i not in self.packed
        }
        self.normalise = _normalise(plan, device)
        channels = plan.shape[0]
        scale = [f / channels for f in plan.preprocess.per_full_scale(channels)]
        self.to_full_scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self.reported = self._reported()
        sources = [source for step in plan.steps for source in sources_of(plan, step)]
        self.stamped = set(self.reported) | {owner for owner, _ in sources}
        self.touched = {owner for owner, footprint in sources if footprint.everything}
        self.shared = make_schedule(plan)
        self.runners: weakref.WeakKeyDictionary[State, Runner] = weakref.WeakKeyDictionary()

    def _reported(self) -> list[int]:
        owners = {
            owner
            for out, shape in zip(self.plan.outputs, self.plan.output_shapes, strict=True)
            if shape is not None
            for owner in self.plan.values[out].owners
        }
        return sorted(owners | {self.plan.input})

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
        refusals = [_too_old(n) for n in range(torch.cuda.device_count())]
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
        return None if is_interpreted() else _too_old(device)

    @classmethod
    def reluctance(cls) -> str | None:
        """The interpreter is for tests."""
        return "its kernels would be interpreted" if is_interpreted() else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, packed and not, with those of steps left to PyTorch."""
        return self._weights.bytes + sum(packed.bytes for packed in self.packed.values())

    @property
    def scratch_bytes(self) -> int:
        """Bytes of stamps, lists and partial sums of all sessions."""
        return sum(runner.bytes for runner in self.runners.values())

    def channel_room(self) -> list[int]:
        """Give the channels per buffer that a pixel's place in the state has room for."""
        from torchdelta.engines.triton.conv import padded_channels

        of_input = self.plan.values[self.plan.input].buffer
        return [
            padded_channels(b.c) if i == of_input else b.c for i, b in enumerate(self.plan.buffers)
        ]

    def evaluate(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """Compute one step whole (see `Engine.evaluate`)."""
        return self.oracle.evaluate(step, inputs)

    def foreign_steps(self) -> dict[str, str]:
        """Name the steps that PyTorch computes, each with the reason."""
        return {self.plan.steps[i].name: reason for i, reason in self.foreign.items()}

    def whole_steps(self) -> dict[str, str]:
        """Name the steps that are computed whole in every frame, and which split the CUDA graph."""
        return {
            self.plan.steps[i].name: "in every frame, for every slot"
            if i not in self.uncaptured
            else f"for every slot with a frame, between CUDA graphs: {self.uncaptured[i]}"
            for i in self.foreign
        }

    def notes(self) -> tuple[str, ...]:
        """Say how many lanes a frame's graph has."""
        lanes = make_lanes(self.plan, self.shared, self.most_lanes).count
        one = ": steps are left to PyTorch" if self.foreign else ""
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

                runner = self.runners[state] = Runner(self, state)
            return runner.step(state, call)

    def _current(self) -> AbstractContextManager[object]:
        """Make the engine's device the current one; where it is, that costs next to nothing."""
        if self.interpreted or torch.cuda.current_device() == self.device.index:
            return CURRENT
        return torch.cuda.device(self.device)


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _too_old(device: torch.device | int) -> str | None:
    """Say why a GPU cannot run the kernels; None where it can."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return None
    return f"the GPU has compute capability {capability[0]}.{capability[1]}, not 8.0"


def foreign_reason(plan: Plan, step: Step) -> str | None:
    """Say why a step is left to PyTorch; None where a kernel here computes it."""
    from torchdelta.engines.triton import conv, rows

    if isinstance(step.op, Dense):
        return step.reason or "no sparse form"
    if isinstance(step.op, (Conv2d, ConvTranspose2d)):
        return conv.refusal(plan, step)
    return rows.refusal(plan, step)


def _normalise(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give factors and shifts [2, C] that make the network's input of uint8 and float frames."""
    pre, channels = plan.preprocess, plan.shape[0]
    mean = torch.tensor(pre.mean or (0.0,) * channels, dtype=torch.float64)
    std = torch.tensor(pre.std or (1.0,) * channels, dtype=torch.float64)
    scale = (pre.hi - pre.lo) / 255
    factor = torch.stack([scale / std, 1 / std])
    shift = torch.stack([(pre.lo - mean) / std, -mean / std])
    return factor.float().to(device).contiguous(), shift.float().to(device).contiguous()
