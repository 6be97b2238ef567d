"""Run convolutional networks on video and compute only what changed from frame to frame."""

from torchdelta.api import CompiledModel, compile, relative_error
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
from torchdelta.runtime.gate import Profile
from torchdelta.runtime.moving import MovingSession
from torchdelta.runtime.result import Result
from torchdelta.runtime.session import Session
from torchdelta.runtime.stats import FrameStats, StepStats, StreamStats
from torchdelta.runtime.windows import Window

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CompiledModel",
    "EngineError",
    "FrameError",
    "FrameStats",
    "ModelError",
    "MovingSession",
    "Profile",
    "ProfileError",
    "Result",
    "Session",
    "SinkError",
    "SourceError",
    "StepStats",
    "StreamError",
    "StreamStats",
    "TorchdeltaError",
    "Window",
    "compile",
    "relative_error",
]
