"""Results on disk: an H.264 video and JSON lines that survive an interrupted or killed run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from torchdelta.arguments import finite
from torchdelta.errors import FrameError, SinkError
from torchdelta.targets import Target, target_of, write_all
from torchdelta.video.names import ffmpeg_url
from torchdelta.video.suffixes import check_video_name

# Suffix -> FFmpeg's name of the container, and its options while the run goes on: every frame is a
# fragment (or cluster) of its own and goes to the file at once.
_LIVE_MP4 = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_LIVE_MKV = {"cluster_time_limit": "1", "flush_packets": "1"}
CONTAINERS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("mp4", _LIVE_MP4),
    ".mov": ("mov", _LIVE_MP4),
    ".mkv": ("matroska", _LIVE_MKV),
}
# Matroska is an ordinary file as soon as it is closed; these are rewritten.
INDEX_IN_FRONT = frozenset({"mp4", "mov"})
# per second: rates from NTSC's 24000/1001 to 60 are whole numbers of them
TICKS = 120_000
BT709 = 1  # ITU-T H.273: matrix, primaries and transfer of HD video


class VideoWriter:
    """Writes H.264 (yuv420p) so that whatever ends the run leaves a playable file.

    path: ends in .mp4, .mov or .mkv; missing parent folders are created; an older file is replaced
          when the first frame is written, and stays as it was where none ever is
    fps:  frames per second, where a frame comes without a time
    size: (h, w) of the pictures; an odd side is made even by repeating the last row or column

    A context manager: frames reach the file as they are written, two at most wait in memory. A
    clean end, an exception included, makes it an ordinary file (MP4: with the index in front).
    Raises SinkError where the file cannot be written, as far as possible before the first frame.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]) -> None:
        self.path = Path(path)
        self.size = size
        self.frames = 0
        self._started = False
        check_video_name(self.path)
        try:
            # 1001: the denominator of NTSC's rates, such as 30000/1001
            self._rate = Fraction(finite("fps", fps, above=0)).limit_denominator(1001)
        except ValueError as error:
            raise SinkError(f"{self.path}: {error}") from None
        if self._rate <= 0:
            raise SinkError(f"{self.path}: fps is {fps}, expected a number from 0.001 up")
        if min(size) < 1:
            raise SinkError(f"{self.path}: size is {size[0]}x{size[1]}, expected at least 1x1")
        self._last_ticks: int | None = None
        # of the frame before the last one to the last one
        self._step_ticks = max(1, round(TICKS / self._rate))
        self._format, options = CONTAINERS[self.path.suffix.lower()]
        _make_parent(self.path)
        target = target_of(self.path)
        if not target.regular and not self.path.is_dir():
            raise SinkError(
                f"{self.path}: leads to {target.file}, which is no file that a video can replace; "
                "give the name of a file"
            )
        # through links, so that they stay
        self._file = target.file
        fd, is_new = _open_unchanged(self.path, target)
        os.close(fd)
        if is_new:
            self._file.unlink()
        try:
            # FFmpeg opens the file in start_encoding, the encoder here
            self._container: Any = av.open(
                ffmpeg_url(self._file), "w", format=self._format, options=options
            )
            self._stream = self._add_stream()
            self._stream.codec_context.open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _sink_error(self.path, error) from error
        self._to_yuv = VideoReformatter()

    def _add_stream(self) -> Any:
        stream: Any = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = (side + side % 2 for side in self.size)
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "preset": "veryfast",
            "crf": "20",
            # no picture waits in the encoder
            "tune": "zerolatency",
            # a player finds a picture to start from in every second
            "g": str(max(1, round(self._rate))),
        }
        codec = stream.codec_context
        codec.time_base = Fraction(1, TICKS)
        codec.color_range = ColorRange.MPEG
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        return stream

    def write(self, rgb: NDArray[np.uint8], pts_s: float | None = None) -> None:
        """Append one picture.

        rgb:   uint8 [H, W, 3] in RGB order
        pts_s: when it is shown, seconds from any beginning; None, or not after the one before: as
               long after that as that was after its own predecessor
        """
        h, w = self.size
        if rgb.dtype != np.uint8 or rgb.shape != (h, w, 3):
            raise FrameError(
                f"picture is {rgb.dtype} {list(rgb.shape)}, {self.path.name} takes "
                f"uint8 [{h}, {w}, 3]"
            )
        if self._container is None:
            raise SinkError(f"{self.path}: already closed")
        even = np.pad(rgb, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge") if h % 2 or w % 2 else rgb
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = self._to_yuv.reformat(
            frame,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts = self._ticks(pts_s)
        frame.time_base = Fraction(1, TICKS)
        self._mux(self._container, frame)
        self.frames += 1

    def _ticks(self, pts_s: float | None) -> int:
        """When the next frame is shown: the first one at 0, the others after those before them."""
        if self._last_ticks is None:
            self._first_s = pts_s or 0.0
            ticks = 0
        else:
            ticks = round((pts_s - self._first_s) * TICKS) if pts_s is not None else 0
            if ticks <= self._last_ticks:
                ticks = self._last_ticks + self._step_ticks
            self._step_ticks = ticks - self._last_ticks
        self._last_ticks = ticks
        return ticks

    def _mux(self, container: Any, frame: av.VideoFrame | None) -> None:
        try:
            if not self._started:
                container.start_encoding()
                self._started = True
            for packet in self._stream.encode(frame):
                container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise _sink_error(self.path, error) from error

    def close(self) -> None:
        """End the video and rewrite it as an ordinary file; does nothing the second time."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self.frames:
                self._mux(container, None)
        finally:
            _close(container)
        if self._started and not self.frames:
            self._file.unlink(missing_ok=True)
        elif self.frames and self._format in INDEX_IN_FRONT:
            self._rewrite()

    def _rewrite(self) -> None:
        whole = self._file.with_name(f".{self._file.name}.part")
        try:
            _copy_packets(self._file, whole, self._format)
            os.replace(whole, self._file)
        except (av.FFmpegError, OSError) as error:
            warnings.warn(
                f"{self.path}: stays a fragmented video, rewriting it failed: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
        finally:
            whole.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
            return
        # the error that is under way says more than one that follows from it
        with contextlib.suppress(SinkError):
            self.close()


def _close(container: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError):
        container.close()


def _copy_packets(source: Path, target: Path, container_format: str) -> None:
    """Copy the video stream of one file into an ordinary file with its index in front."""
    options = {"movflags": "faststart"}
    with (
        av.open(ffmpeg_url(source)) as given,
        av.open(ffmpeg_url(target), "w", format=container_format, options=options) as made,
    ):
        stream_in = given.streams.video[0]
        stream_out = made.add_stream_from_template(stream_in)
        for packet in given.demux(stream_in):
            if packet.dts is not None:
                packet.stream = stream_out
                made.mux(packet)


class JsonLines:
    """Writes one JSON object per line; a killed run leaves only whole lines.

    path: missing parent folders are created; an older file is replaced when the first line is
          written, and stays as it was where none ever is. What is no regular file (a pipe, what
          /dev and /proc name) is written to from where it stands, and never truncated
    into: an open stream of bytes instead, which the path only names; it stays open

    NaN and infinity become null, tensors and arrays become numbers and lists. Raises SinkError
    where the file cannot be written.
    """

    def __init__(self, path: str | Path, into: BinaryIO | None = None) -> None:
        self.path = Path(path)
        self.lines = 0
        self._into = into
        self._fd, self._is_new, self._closed = -1, False, False
        if into is None:
            _make_parent(self.path)
            self._target = target_of(self.path)
            self._fd, self._is_new = _open_unchanged(self.path, self._target)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append the record as one line, to a file in one system call."""
        if self._closed:
            raise SinkError(f"{self.path}: already closed")
        text = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False)
        line = _utf8(text + "\n")
        try:
            self._append(line)
        except OSError as error:
            raise _sink_error(self.path, error) from error
        self.lines += 1

    def _append(self, line: bytes) -> None:
        if self._into is not None:
            self._into.write(line)
            self._into.flush()
            return
        if not self._target.regular:
            write_all(self._fd, line)
            return
        if not self.lines:
            os.ftruncate(self._fd, 0)
        written = os.write(self._fd, line)
        if written < len(line):
            # the disk is full: take the broken line back
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise SinkError(f"{self.path}: no room for line {self.lines + 1}")

    def close(self) -> None:
        """Close the file; does nothing the second time."""
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        os.close(fd)
        if self._is_new and not self.lines:
            self._target.file.unlink(missing_ok=True)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _utf8(text: str) -> bytes:
    """Encode; a file's name that is not in the locale's encoding gets its own bytes back."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "replace")
    return raw.decode("utf-8", "replace").encode()


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity as None, arrays as lists."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"{path}: its folder cannot be created: {error.strerror or error}"
        ) from error


def _open_unchanged(path: Path, target: Target) -> tuple[int, bool]:
    """Open a file for appending, its content left alone: the descriptor, and whether it is new."""
    is_new = target.regular and not target.file.exists()
    try:
        return target.open(), is_new
    except OSError as error:
        raise _sink_error(path, error) from error


def _sink_error(path: Path, error: Exception) -> SinkError:
    return SinkError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}")
