"""Sources by name: frames of video files, pictures and cameras, as networks take them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from torchdelta.errors import SourceError
from torchdelta.video.camera import open_camera
from torchdelta.video.images import (
    count_frames,
    image_frames,
    images_in,
    is_image,
)
from torchdelta.video.names import printable, resolve
from torchdelta.video.pixels import (
    CHANNELS,
    Frame,
    Range,
    in_range,
    least_and_largest,
    stretched,
    to_8_bits,
    with_channels,
)
from torchdelta.video.reader import DEFAULT_FPS, open_video, read_vectors
from torchdelta.video.records import Decoded, Remark
from torchdelta.video.suffixes import IMAGE_SUFFIXES
from torchdelta.videoframe import VideoFrame

__all__ = ["IMAGE_SUFFIXES", "Source", "open_source", "read_vectors"]


class Source:
    """The frames of one video source, in order: an iterator and a context manager.

    It gives `VideoFrame`s. Each picture is an array of its own, [H, W, C]: uint8, or float32 within
    `value_range` where the source has more than 8 bits; the size may change from frame to frame.
    Iterating raises SourceError where the source is damaged, after the frames before the damage.

    name:    file name, folder name or "camera 0"
    size:    (h, w) of the first frame
    fps:     frames per second; 25 where the source does not know
    frames:  number of frames that the source promises, None where it does not say
    is_live: frames come when they come (a camera)
    value_range: (lo, hi) of float frames, None of a source of 8 bits; values beyond are clipped. It
             may be set until the first frame is taken
    remarks: what there was to say so far: joins, promises missed, damage that was skipped
    """

    def __init__(
        self,
        name: str,
        decoded: Iterator[Decoded],
        *,
        fps: float | None,
        frames: int | None,
        channels: int = 3,
        value_range: Range | None = None,
        is_live: bool = False,
        remarks: list[Remark] | None = None,
    ) -> None:
        self.name = name
        self.fps = float(fps) if fps and np.isfinite(fps) and fps > 0 else DEFAULT_FPS
        self.frames = frames
        self.is_live = is_live
        self.remarks: list[Remark] = [] if remarks is None else remarks
        self._channels = channels
        self._decoded = decoded
        self._position = 0
        self._noted = False
        # The first frame is read at once: only it tells the true size, and a source without a
        # single good frame is refused before anything else is set up.
        self._ahead = next(decoded, None)
        if self._ahead is None:
            left_out = [remark.text for remark in self.remarks if remark.kind == "damage"]
            raise SourceError(f"{name}: holds no frame" + "".join(f"; {text}" for text in left_out))
        # refused now, not with the first frame
        with_channels(self._ahead, channels)
        self.size: tuple[int, int] = self._ahead.pixels.shape[:2]
        is_deep = self._ahead.pixels.dtype != np.uint8
        if value_range is not None and not is_deep:
            raise SourceError(
                f"{name}: has 8 bits, which are taken as 0..255; a range is for pictures of more"
            )
        self.value_range = value_range
        if is_deep and value_range is None:
            self.value_range = least_and_largest(self._ahead)

    @property
    def position(self) -> int:
        """Number of frames delivered so far, which is the index of the next one."""
        return self._position

    def __iter__(self) -> Iterator[VideoFrame]:
        return self

    def __next__(self) -> VideoFrame:
        ahead, self._ahead = self._ahead, None
        decoded = next(self._decoded) if ahead is None else ahead
        frame = VideoFrame(self._as_wanted(decoded), decoded.pts_s, decoded.vectors)
        self._position += 1
        return frame

    def _as_wanted(self, decoded: Decoded) -> Frame:
        pixels = with_channels(decoded, self._channels)
        is_deep = pixels.dtype != np.uint8
        if self.value_range is None:
            if not is_deep:
                return pixels
            self._note_once("has more than 8 bits, unlike the first one, and is brought to 8")
            return to_8_bits(pixels, decoded.full)
        low, high = self.value_range
        if not is_deep:
            self._note_once(f"has 8 bits, unlike the first one: 0..255 means {low:g}..{high:g}")
            return stretched(pixels, self.value_range)
        least, largest = least_and_largest(decoded)
        if least < low or largest > high:
            self._note_once(
                f"has values from {least:g} to {largest:g}; they are clipped to {low:g}..{high:g}"
            )
        return in_range(pixels, self.value_range, decoded.full)

    def _note_once(self, what: str) -> None:
        """Remark on a frame that is unlike the first one, the first time that one is."""
        if not self._noted:
            text = f"{self.name}: frame {self._position} {what}; so with all like it"
            self.remarks.append(Remark("note", text))
        self._noted = True

    def close(self) -> None:
        """Release the file or the camera; further iteration ends at once."""
        self._ahead = None
        close = getattr(self._decoded, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_source(
    spec: str | os.PathLike[str] | int,
    *,
    gray: bool = False,
    channels: int | None = None,
    vectors: bool = False,
    value_range: Range | None = None,
    skip_damaged: bool = False,
) -> Source:
    """Open a video file, a folder of images (or one image), or a camera.

    spec: path of a file or folder; a camera's index, as int, as a string of digits where nothing of
          that name is on disk, or as "camera:0"
    gray: the same as channels=1
    channels: of each frame: 1 grey (0.299 R + 0.587 G + 0.114 B), 2 grey and alpha, 3 RGB (the
          default), 4 RGBA
    vectors: have the decoder hand out motion vectors (H.264, MPEG-1/2/4 and their like have them)
    value_range: (lo, hi) of pictures of more than 8 bits: frames are float32, clipped to it;
          default: the least and the largest value of the first frame
    skip_damaged: leave damaged pictures and packets out, and what is predicted from them;
          `Source.remarks` tells them

    Raises SourceError where there is nothing to read, saying what was found instead, and ValueError
    for an impossible range.
    """
    wanted = channels or (1 if gray else 3)
    if wanted not in CHANNELS:
        kinds = ", ".join(f"{count} ({kind})" for count, kind in CHANNELS.items())
        raise SourceError(f"sources have no {wanted} channels; they give {kinds}")
    if value_range is not None:
        low, high = value_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"value_range is ({low}, {high}), expected finite numbers lo < hi")
    found = resolve(spec)
    remarks = [Remark("note", found.note)] if found.note else []
    if found.camera is not None:
        name, decoded, fps = open_camera(found.camera)
        return Source(name, decoded, fps=fps, frames=None, channels=wanted, is_live=True,
                      value_range=value_range, remarks=remarks)  # fmt: skip
    path = found.path
    name = printable(path.name or path.resolve().name)
    try:
        rate, frames = None, None
        if path.is_dir():
            images, passed_over = images_in(path)
            remarks += passed_over
            decoded, frames = image_frames(images, skip_damaged, remarks), len(images)
        elif is_image(path):
            decoded, frames = image_frames([path], skip_damaged, remarks), count_frames(path)
        else:
            decoded, rate, frames = open_video(path, wanted, vectors, skip_damaged, remarks)
        return Source(name, decoded, fps=rate, frames=frames, channels=wanted,
                      value_range=value_range, remarks=remarks)  # fmt: skip
    except OSError as error:
        said = error.strerror or error
        raise SourceError(f"{printable(path)}: cannot be read: {said}") from error
