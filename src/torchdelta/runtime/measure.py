"""Turns for measurements: kernels are timed on active sets that somebody chose."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torchdelta.apart import apart
from torchdelta.runtime.frames import Frame
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session


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
