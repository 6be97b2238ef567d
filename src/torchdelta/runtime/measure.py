"""Turns for tests and measurements, on active sets and in windows that somebody chose."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchdelta.apart import apart
from torchdelta.runtime.frames import Frame
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.runtime.windows import Mask, Window


@apart
def forced_step(
    session: Session,
    frames: Mapping[str, Frame],
    forced: Mapping[int, Tensor] | None,
    *,
    record: bool = False,
) -> dict[str, Result]:
    """Run frames as `Session.step` does, with chosen active sets.

    Gate, masks and footprints run and are timed as always. Then a step's active set is replaced,
    and all of it is published. Frames that recompute everything ignore it.

    forced: active sets by step index, bool [Ho, Wo] on the session's device, the same for all
            streams. It is looked at once: pass the same mapping with every frame. None forces none
    Raises: as `Session.step`; ValueError for an active set that does not fit: nothing has run then.
    """
    return session._turn(frames, forced=forced, record=record)


@apart
def placed_step(
    session: Session,
    frames: Mapping[str, Frame],
    windows: Mapping[str, Window],
    *,
    roi: Mapping[str, Mask] | None = None,
    record: bool = False,
) -> dict[str, Result]:
    """Run frames as `Session.step` does, of streams with motion="none" whose windows are placed.

    windows: stream -> where its window lies with this frame, which shows what it covers; the
             others' stay where they are. A jump by more than the window recomputes everything
    Raises: as `Session.step`. A window that does not fit is refused like a frame.
    """
    return session._turn(frames, roi or {}, windows, record=record)
