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
    from torchdelta.runtime.handle import StreamHandle
    from torchdelta.runtime.profile import Profile
    from torchdelta.runtime.result import Result
    from torchdelta.runtime.session import Session
    from torchdelta.runtime.stats import FrameStats, StepStats, StreamStats
    from torchdelta.video.source import Source, open_source
    from torchdelta.videoframe import VideoFrame
else:
    # PyTorch takes seconds to import, and help or a missing file needs none of it
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "torchdelta.api": ("CompiledModel", "compile", "relative_error"),
            "torchdelta.runtime.handle": ("StreamHandle",),
            "torchdelta.runtime.profile": ("Profile",),
            "torchdelta.runtime.result": ("Result",),
            "torchdelta.runtime.session": ("Session",),
            "torchdelta.runtime.stats": ("FrameStats", "StepStats", "StreamStats"),
            "torchdelta.video.source": ("Source", "open_source"),
            "torchdelta.videoframe": ("VideoFrame",),
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
    "StreamHandle",
    "StreamStats",
    "TorchdeltaError",
    "VideoFrame",
    "compile",
    "open_source",
    "relative_error",
]
