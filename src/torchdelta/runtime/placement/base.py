"""What a placement is: how a stream's frames lie in the window that the network runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from torchdelta.errors import TorchdeltaError
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.stats import FrameStats
from torchdelta.runtime.windows import Mask, Position, Window


@dataclass
class Arrival:
    """A stream's next frame and what came with it, as it was given; `Placement.check` checks it.

    frame:    then [h, w, C], where it is;  roi: then bool [h, w] on the engine's device
    position: then, of a stream that runs on its frames, where its window lies
    """

    frame: Any
    roi: Mask | None = None
    window: Window | None = None
    homography: Any = None
    relative_to: str = "previous"
    vectors: Vectors | None = None
    position: Position | None = None


class Placed(NamedTuple):
    """A frame as the network runs on it, [C, H, W], and where its window lies.

    aligned:  where the frame lies in the window; None where it is the frame
    spent_ms: what finding that out and warping took
    """

    frame: Tensor
    position: Position
    aligned: Aligned | None = None
    spent_ms: float = 0.0


class Counted(Protocol):
    """One stream's frame: its statistics, made when they are read."""

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""

    @property
    def stats(self) -> FrameStats:
        """Counts of the frame; waits for the device."""


class Ran(Protocol):
    """What placements read of a result (`runtime.result.Result`)."""

    error: TorchdeltaError | None
    aligned: Aligned | None

    @property
    def counted(self) -> Counted:
        """What is counted of the frame."""


class Placement(ABC):
    """How one stream's frames lie in its window."""

    @property
    @abstractmethod
    def followed(self) -> bool:
        """Whether the stream runs on windows of a world now, not on its frames."""

    def begin(self) -> bool:
        """Begin a turn; says whether a frame of which nothing is said may run as it is."""
        return False

    @abstractmethod
    def check(self, stream: Standing, arrival: Arrival) -> Arrival:
        """Check what came; changes nothing. Raises: FrameError."""

    @abstractmethod
    def place(self, stream: Standing, arrival: Arrival) -> Placed:
        """Place a frame that was checked."""

    # most take no note of either

    def ran(self, stream: Standing, result: Ran) -> None:  # noqa: B027
        """Take note of what a frame gave; a device may still be at it."""

    def missed(self) -> None:  # noqa: B027
        """Take note of a frame that was refused."""
