"""How streams' frames lie in the windows that the network runs on: one placement per stream."""

from __future__ import annotations

from typing import Literal, get_args

from torchdelta.runtime.placement.auto import Auto
from torchdelta.runtime.placement.base import Arrival, Placed, Placement
from torchdelta.runtime.placement.fixed import Fixed
from torchdelta.runtime.placement.followed import Followed
from torchdelta.runtime.placement.given import Given
from torchdelta.runtime.placement.world import World
from torchdelta.runtime.windows import Border

Motion = Literal["none", "auto", "features", "codec", "translation", "given"]


def make_placement(motion: Motion, world: World, grains: tuple[int, ...]) -> Placement:
    """Make a stream's placement.

    grains: of the input gate's cells of streams on frames and on windows, pixels
    Raises: CaptureError where the network does not run on windows.
    """
    if motion == "none":
        return Fixed(world.still)
    if motion == "auto":
        return Auto(world, grains)
    world.require()
    return Given(world) if motion == "given" else Followed(world, motion)


def check_motion(motion: str, border: str = "keep") -> None:
    """Refuse unknown names. Raises: ValueError."""
    if motion not in get_args(Motion):
        names = ", ".join(f'"{name}"' for name in get_args(Motion))
        raise ValueError(f"motion is {motion!r}, expected one of {names}")
    if border not in get_args(Border):
        raise ValueError(f'border is {border!r}, expected "keep" or "exact"')


__all__ = ["Arrival", "Motion", "Placed", "Placement", "World", "check_motion", "make_placement"]
