"""Reading frames from files, folders and cameras; writing results as video and as JSON lines."""

from typing import TYPE_CHECKING

from torchdelta.errors import SinkError
from torchdelta.lazy import lazily

if TYPE_CHECKING:
    from torchdelta.video.sink import JsonLines, VideoWriter
    from torchdelta.video.source import Source, open_source
    from torchdelta.videoframe import VideoFrame
else:
    # what a name of a source means is known without FFmpeg and OpenCV
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "torchdelta.video.sink": ("JsonLines", "VideoWriter"),
            "torchdelta.video.source": ("Source", "open_source"),
            "torchdelta.videoframe": ("VideoFrame",),
        },
    )

__all__ = ["JsonLines", "SinkError", "Source", "VideoFrame", "VideoWriter", "open_source"]
