"""Reading frames from files, folders and cameras; writing results as video and as JSON lines."""

from torchdelta.video.sink import JsonLines, SinkError, VideoWriter
from torchdelta.video.source import Source, open_source

__all__ = ["JsonLines", "SinkError", "Source", "VideoWriter", "open_source"]
