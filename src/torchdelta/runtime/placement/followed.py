"""Cameras that are followed: their frames are aligned and warped into a window of the world."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchdelta.errors import FrameError
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.codec import NO_VECTORS, Codec
from torchdelta.motion.estimate import Estimator
from torchdelta.motion.features import Features
from torchdelta.motion.translation import Translation
from torchdelta.motion.vectors import Vectors
from torchdelta.runtime.frames import check_frame
from torchdelta.runtime.placement.base import Arrival, Placed, Placement
from torchdelta.runtime.placement.world import World
from torchdelta.runtime.standing import Standing
from torchdelta.runtime.windows import Window, check_mask, place

# motion="codec" says so where as many frames of a stream came without a single vector
MISSES_VECTORS = 10


# "auto": by the decoder's vectors where there are any, else by corners, as "codec"
ESTIMATORS: dict[str, type[Estimator]] = {
    "auto": Codec, "features": Features, "codec": Codec, "translation": Translation,
}  # fmt: skip


class Followed(Placement):
    """Follows a camera.

    motion:  how: the name of an estimator, or "given": homographies come with the frames
    aligner: places the frames
    """

    followed = True

    def __init__(self, world: World, motion: str) -> None:
        self._world, self._motion = world, motion
        kind = ESTIMATORS.get(motion)
        self.aligner = world.aligner(kind() if kind else None)
        # frames that came without vectors; None once there were any
        self._vectorless: int | None = 0

    def check(self, stream: Standing, arrival: Arrival) -> Arrival:
        """Check a frame and what came with it; changes nothing."""
        still = self._world.still
        check_extras(arrival)
        frame = check_frame(arrival.frame, still.plan, still.device, still.dtype)
        region = arrival.roi
        if region is not None:
            region = check_mask("roi", region, still.plan, still.device)
        return replace(arrival, frame=frame, roi=region)

    def place(self, stream: Standing, arrival: Arrival) -> Placed:
        """Find where a frame lies, and bring it into the window."""
        begin = time.perf_counter()
        aligned = self.aligner.place(
            arrival.frame, vectors=arrival.vectors, homography=arrival.homography,
            relative_to=arrival.relative_to,
        )  # fmt: skip
        if aligned.anchored is not None:
            # of a stream that is computed anew in any case, that reason stays
            stream.full = stream.full or aligned.anchored
        if self._motion == "codec":
            self._count_vectors(stream, aligned)
        engine = self._world.require()
        frame, shown = aligned.warp_and_mark(arrival.frame.to(engine.device))
        spent_ms = (time.perf_counter() - begin) * 1e3
        region = arrival.roi
        if region is not None:
            assert isinstance(region, Tensor), "checked"
            region = _moved(region, aligned)
        window = Window(aligned.origin, shown, self._world.border)
        at = place(
            engine.plan, engine.device, stream.rest.origin, window, region,
            whole=stream.full is not None,
        )  # fmt: skip
        return Placed(frame.permute(2, 0, 1), at, aligned, spent_ms)

    def missed(self) -> None:
        """Take note of a frame that was refused: nobody knows where it lies."""
        self.aligner.miss()

    def _count_vectors(self, stream: Standing, aligned: Aligned) -> None:
        """Say once where vectors never come."""
        if self._vectorless is None or aligned.motion.estimator is None:
            return
        if aligned.motion.fallback != NO_VECTORS:
            self._vectorless = None
            return
        self._vectorless += 1
        if self._vectorless == MISSES_VECTORS:
            self._world.notes.append(
                f"stream {stream.name!r}: no motion vectors came with its first {MISSES_VECTORS} "
                "frames; corners are followed instead, which takes more time"
            )


def check_extras(arrival: Arrival) -> None:
    """Refuse a window from outside, and what are no motion vectors. Raises: FrameError."""
    given: Any = arrival.vectors
    if arrival.window is not None:
        raise FrameError(
            "a window was given, and its camera's motion decides where that lies; windows are for "
            'streams with motion="none"'
        )
    if given is not None and not isinstance(given, Vectors):
        raise FrameError(
            f"vectors are a {type(given).__name__}, expected those that its source gave, or None"
        )


def _moved(region: Tensor, aligned: Aligned) -> Tensor:
    """Bring a region [h, w] of the frame into the window, bool [H, W]."""
    grey = region.to(torch.uint8).mul(255)[:, :, None]
    return aligned.warp(grey)[:, :, 0] >= 128
