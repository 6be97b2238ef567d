"""A stream's camera: how it can be followed, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torchdelta.motion.align import Aligner
from torchdelta.motion.aligned import Aligned
from torchdelta.motion.codec import NO_VECTORS, Codec
from torchdelta.motion.estimate import Estimator
from torchdelta.motion.features import Features
from torchdelta.motion.translation import Translation
from torchdelta.runtime.watch import Watch
from torchdelta.runtime.windows import Border

Motion = Literal["auto", "features", "codec", "translation", "given"]
# None: homographies come with the frames. The decoder's vectors where there are any, else corners
ESTIMATORS: dict[str, type[Estimator] | None] = {
    "auto": Codec, "features": Features, "codec": Codec, "translation": Translation, "given": None,
}  # fmt: skip
# motion="codec" says so where as many frames of a stream came without a single vector
MISSES_VECTORS = 10


@dataclass
class Camera:
    """One stream's camera.

    aligner: None while the camera is not followed
    watch:   decides whether it is, with motion="auto"
    vectorless: frames that came without vectors; None once there were any
    """

    aligner: Aligner | None
    watch: Watch | None
    vectorless: int | None = 0

    def misses_vectors(self, aligned: Aligned) -> bool:
        """Note whether a frame came with vectors; True once, where they never come."""
        if self.vectorless is None or aligned.motion.estimator is None:
            return False
        if aligned.motion.fallback != NO_VECTORS:
            self.vectorless = None
            return False
        self.vectorless += 1
        return self.vectorless == MISSES_VECTORS


def check_motion(motion: str, border: str) -> None:
    """Refuse unknown names. Raises: ValueError."""
    if motion not in ESTIMATORS:
        names = ", ".join(f'"{name}"' for name in ("none", *ESTIMATORS))
        raise ValueError(f"motion is {motion!r}, expected one of {names}")
    if border not in get_args(Border):
        raise ValueError(f'border is {border!r}, expected "keep" or "exact"')
