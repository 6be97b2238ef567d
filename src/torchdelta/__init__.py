"""Run convolutional networks on video and compute only what changed from frame to frame."""

from typing import TYPE_CHECKING

from torchdelta.errors import (
    CaptureError,
    EngineError,
    FrameError,
    ModelError,
    ProfileError,
    SinkError,
    SourceError,
    StreamError,
    TorchdeltaError,
)
from torchdelta.lazy import lazily

if TYPE_CHECKING:
    from torchdelta.api import CompiledModel, compile, relative_error
    from torchdelta.runtime.profile import Profile
    from torchdelta.runtime.result import Result
    from torchdelta.runtime.session import Session
    from torchdelta.runtime.stats import FrameStats, StepStats, StreamStats
    from torchdelta.runtime.windows import Window
    from torchdelta.video.source import Source, open_source
else:
    # PyTorch takes seconds to import, and help or a missing file needs none of it
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "torchdelta.api": ("CompiledModel", "compile", "relative_error"),
            "torchdelta.runtime.profile": ("Profile",),
            "torchdelta.runtime.result": ("Result",),
            "torchdelta.runtime.session": ("Session",),
            "torchdelta.runtime.stats": ("FrameStats", "StepStats", "StreamStats"),
            "torchdelta.runtime.windows": ("Window",),
            "torchdelta.video.source": ("Source", "open_source"),
        },
    )

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CompiledModel",
    "EngineError",
    "FrameError",
    "FrameStats",
    "ModelError",
    "Profile",
    "ProfileError",
    "Result",
    "Session",
    "SinkError",
    "Source",
    "SourceError",
    "StepStats",
    "StreamError",
    "StreamStats",
    "TorchdeltaError",
    "Window",
    "compile",
    "open_source",
    "relative_error",
]
