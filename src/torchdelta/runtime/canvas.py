"""What streams run on: the network at one size, with the state of their slots."""

from __future__ import annotations

import torch

from torchdelta.engines import Engine
from torchdelta.plan import Plan
from torchdelta.runtime.outputs import Outputs
from torchdelta.runtime.profile import Profile
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.thresholds import Thresholds
from torchdelta.runtime.windows import Position
from torchdelta.state import State


class Canvas:
    """The network at the size of frames, or of windows, with a state for N slots.

    grain: side in pixels of the cells in which the input gate counts
    """

    def __init__(
        self, engine: Engine, slots: int, profile: Profile, *, grain: int, views: bool
    ) -> None:
        self.engine = engine
        self.state = State(
            engine.plan, slots, engine.dtype, engine.device, profile.norm, engine.channel_room(),
            grain,
        )  # fmt: skip
        self.thresholds = Thresholds(engine.plan, slots, profile)
        self.outputs = Outputs(self.state, views=views)
        self.to_full_scale = torch.tensor(
            engine.plan.preprocess.per_full_scale(engine.plan.shape[0]),
            dtype=torch.float32,
            device=engine.device,
        )

    @property
    def plan(self) -> Plan:
        """What runs."""
        return self.engine.plan

    def settle(self, stream: Standing, at: Position) -> None:
        """Let a stream's window lie where its frame says."""
        if at is stream.rest:
            return
        if at.jump is not None:
            stream.full = at.jump
        if stream.full is not None:
            stream.kept = False
        elif at.move is not None and not at.move.exact:
            stream.kept = True
        if (at.move is not None or stream.full is not None) and (
            tuple(self.state.origin[stream.slot]) != at.origin
        ):
            self.state.place(stream.slot, at.origin)
        stream.rest = Position(at.origin)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)
