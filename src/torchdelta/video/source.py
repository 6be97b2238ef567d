"""Frames from a video file, a folder of images or a camera, and where a damaged one breaks off."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from torchdelta.errors import SourceError
from torchdelta.motion.vectors import Vectors
from torchdelta.video.suffixes import IMAGE_SUFFIXES

Picture = NDArray[np.uint8]
# a frame, and the decoder's motion vectors where it has them and they were asked for
Decoded = tuple[Picture, Vectors | None]

DEFAULT_FPS = 25.0
# H.264 and HEVC allow 16 reference pictures, so no B-frame waits for more than these.
MAX_B_FRAMES = 16


class Source:
    """The frames of one video source, in order: an iterator and a context manager.

    Each frame is a uint8 array of its own, [H, W, 3] in RGB order, or [H, W, 1] for a grey source;
    the size may change from frame to frame.
    Iterating raises SourceError where the source is damaged, after the frames before the damage.

    name:   file name, folder name or "camera 0"
    size:   (h, w) of the first frame
    fps:    frames per second; 25 where the source does not know
    frames: number of frames that the source promises, None where it does not say
    vectors: motion vectors of the frame delivered last, None where the source has none
    """

    def __init__(
        self, name: str, pictures: Iterator[Decoded], *, fps: float | None, frames: int | None
    ) -> None:
        self.name = name
        self.fps = float(fps) if fps and np.isfinite(fps) and fps > 0 else DEFAULT_FPS
        self.frames = frames
        self._pictures = pictures
        self._position = 0
        # The first frame is read at once: only it tells the true size, and a source without a
        # single good frame is refused before anything else is set up.
        self._ahead = next(pictures, None)
        self.vectors: Vectors | None = None
        if self._ahead is None:
            raise SourceError(f"{name}: holds no frame")
        self.size: tuple[int, int] = self._ahead[0].shape[:2]

    @property
    def position(self) -> int:
        """Number of frames delivered so far, which is the index of the next one."""
        return self._position

    def __iter__(self) -> Iterator[Picture]:
        return self

    def __next__(self) -> Picture:
        ahead, self._ahead = self._ahead, None
        frame, self.vectors = next(self._pictures) if ahead is None else ahead
        self._position += 1
        return frame

    def close(self) -> None:
        """Release the file or the camera; further iteration ends at once."""
        self._ahead = None
        close = getattr(self._pictures, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_source(spec: str | Path | int, *, gray: bool = False, vectors: bool = False) -> Source:
    """Open a video file, a folder of images (or one image), or a camera.

    spec: path of a file or folder; a camera index as int or as a string of digits
    gray: frames are [H, W, 1], 0.299 R + 0.587 G + 0.114 B, instead of [H, W, 3] RGB
    vectors: have the decoder hand out motion vectors (H.264, MPEG-1/2/4 and their like have them)

    Raises SourceError where there is nothing to read, saying what was found instead.
    """
    if isinstance(spec, int) or (isinstance(spec, str) and spec.isdecimal()):
        return _open_camera(int(spec), gray)
    path = Path(spec)
    try:
        if path.is_dir():
            found = (p for p in path.iterdir() if not p.name.startswith("."))
            images = sorted((p for p in found if _is_image(p)), key=_natural_order)
            if not images:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise SourceError(f"{path}: this folder holds no image ({kinds})")
            return _open_images(path, images, gray)
        if not path.exists():
            raise SourceError(
                f"{path}: no such file or folder; a source is a video file, a folder of images "
                "or a camera index"
            )
        if _is_image(path):
            return _open_images(path, [path], gray)
        return _open_video(path, gray, vectors)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


# ------------------------------------------------------------------------------ images, cameras


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Key that puts frame9 before frame10: digits and the text between them take turns."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], path.name


def _from_bgr(picture: Picture, gray: bool) -> Picture:
    if gray:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), dtype=np.uint8)[..., None]
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _open_images(path: Path, images: list[Path], gray: bool) -> Source:
    name = path.name or path.resolve().name
    return Source(name, _image_pictures(images, gray), fps=None, frames=len(images))


def _image_pictures(images: list[Path], gray: bool) -> Iterator[Decoded]:
    for index, image in enumerate(images):
        try:
            data = np.frombuffer(image.read_bytes(), np.uint8)
        except OSError as error:
            raise SourceError(f"{image}: frame {index} cannot be read: {error.strerror}") from error
        picture = _decode_image(data)
        if picture is None:
            raise SourceError(f"{image}: frame {index} is damaged or is no image")
        yield _from_bgr(picture, gray), None


def _decode_image(data: Picture) -> Picture | None:
    if not data.size:
        return None
    try:
        # IMREAD_COLOR drops alpha, brings 16 bits to 8 and turns the picture as EXIF says
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if picture is None else np.asarray(picture, dtype=np.uint8)


def _open_camera(index: int, gray: bool) -> Source:
    camera = cv2.VideoCapture(index)
    if not camera.isOpened():
        camera.release()
        raise SourceError(
            f"camera {index} cannot be opened; is it connected, free, and may this user read it?"
        )
    name = f"camera {index}"
    fps = float(camera.get(cv2.CAP_PROP_FPS))
    return Source(name, _camera_pictures(name, camera, gray), fps=fps, frames=None)


def _camera_pictures(name: str, camera: cv2.VideoCapture, gray: bool) -> Iterator[Decoded]:
    try:
        delivered = 0
        while True:
            good, picture = camera.read()
            if not good or picture is None:
                raise SourceError(f"{name}: stopped delivering after {delivered} frames")
            yield _from_bgr(np.asarray(picture, dtype=np.uint8), gray), None
            delivered += 1
    finally:
        camera.release()


# ---------------------------------------------------------------------------------- video files


def _open_video(path: Path, gray: bool, vectors: bool) -> Source:
    with _FFMPEG_LOG:
        try:
            container = av.open(str(path))
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(f"{path}: cannot be opened as a video: {_said(error)}") from error
    try:
        # FFmpeg reads any text file as an ANSI terminal recording
        if not container.streams.video or container.format.name == "tty":
            raise SourceError(f"{path}: holds no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise SourceError(f"{path}: no decoder for this video's codec")
        reader = _VideoReader(path, container, stream, gray, vectors)
        rate = stream.average_rate or stream.guessed_rate
        return Source(
            path.name,
            reader.pictures(),
            fps=float(rate) if rate else None,
            frames=stream.frames or None,
        )
    except BaseException:
        container.close()
        raise


class _Damage(Exception):
    """Decoding met damage: what FFmpeg says, and the time stamp of the packet where known.

    decoded: a damaged frame came out of the decoder, so all good ones before it did as well
    """

    def __init__(self, said: str, pts: int | None = None, *, decoded: bool = False) -> None:
        super().__init__(said)
        self.pts = pts
        self.decoded = decoded


class _VideoReader:
    """Decodes one video stream, and tells good frames from damaged ones as far as FFmpeg can.

    Its H.264 and MPEG-1/2/4 decoders notice most damage; those of HEVC, VP8/9, AV1 and MJPEG
    little more than packets that are missing or cut off.
    """

    def __init__(self, path: Path, container: Any, stream: Any, gray: bool, vectors: bool) -> None:
        self._path = path
        self._container = container
        self._stream = stream
        self._gray = gray
        self._vectors = vectors
        self._rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        self._frame_pts = 1 / (self._rate * float(stream.time_base))
        self._packets = 0
        self._end_pts = 0
        self._seen_keyframe = False
        self._delivered = 0
        self._last_pts: int | None = None
        # FFmpeg conceals damage by default; "explode" makes it refuse the packet instead. Not for
        # H.264, where it drops a good frame with each error and damaged frames are marked anyway,
        # and not for HEVC, where it refuses sound recordings that begin between two keyframes.
        options = {}
        if stream.codec_context.name not in ("h264", "hevc"):
            options["err_detect"] = "explode+bitstream+crccheck"
        if vectors:
            options["flags2"] = "+export_mvs"
        stream.codec_context.options = options
        # One thread: with more, an error surfaces some packets late, and decoding would compete
        # for the cores with the network whose time is being measured.
        stream.thread_type = "NONE"

    def pictures(self) -> Iterator[Decoded]:
        """All good frames; then SourceError where the file is damaged or ends early."""
        with contextlib.closing(self._container):
            held: list[Any] = []
            try:
                for frame in self._decoded():
                    if frame.is_corrupt:
                        # held B-frames may be predicted from this one
                        held.clear()
                        raise _Damage("the decoder reports a corrupt frame", decoded=True)
                    held.append(frame)
                    if frame.pict_type != PictureType.B or len(held) > MAX_B_FRAMES:
                        yield from self._delivering(held)
                yield from self._delivering(held)
            except _Damage as damage:
                yield from self._delivering(held)
                yield from self._delivering(self._still_inside(damage))
                raise SourceError(self._report(damage)) from damage

    def _decoded(self) -> Iterator[Any]:
        """Frames as the decoder gives them; _Damage at the first packet that it refuses."""
        packets = self._container.demux(self._stream)
        while (packet := _guarded(lambda: next(packets, None), None)) is not None:
            if packet.dts is None and not packet.size:
                self._check_complete()
            else:
                self._packets += 1
                self._end_pts = max(self._end_pts, (packet.pts or 0) + (packet.duration or 0))
                self._seen_keyframe |= packet.is_keyframe
                if not packet.size:
                    # a dropped frame in AVI; the decoder would take it for the end
                    continue
            try:
                if packet.is_corrupt:
                    raise _Damage("a packet is cut off", packet.pts)
                yield from _guarded(packet.decode, packet.pts)
            except _Damage:
                # a recording may begin between two keyframes; what comes before is not damage
                if self._seen_keyframe:
                    raise

    def _still_inside(self, damage: _Damage) -> list[Any]:
        """The good frames that are still inside the decoder when it meets the damage."""
        frames: list[Any] = []
        if damage.decoded:
            return frames
        last_pts: Any = self._last_pts
        with contextlib.suppress(av.FFmpegError):
            for frame in self._stream.codec_context.decode(None):
                late = None not in (damage.pts, frame.pts) and frame.pts >= damage.pts
                # a lost B-frame leaves a gap before the frame that it was predicted from
                gap = None not in (last_pts, frame.pts) and (
                    frame.pts - last_pts > 1.5 * self._frame_pts
                )
                if late or gap or frame.is_corrupt:
                    break
                last_pts = frame.pts
                frames.append(frame)
        return frames

    def _delivering(self, frames: list[Any]) -> Iterator[Decoded]:
        """Hand out the frames as arrays, turned as the file says, and empty the list."""
        while frames:
            frame = frames.pop(0)
            picture = frame.to_ndarray(format="gray" if self._gray else "rgb24")
            turns = round(frame.rotation / 90) % 4
            if turns:
                picture = np.ascontiguousarray(np.rot90(picture, turns))
            self._delivered += 1
            self._last_pts = frame.pts
            # blocks of a picture that is turned would have to be turned as well
            vectors = read_vectors(frame) if self._vectors and not turns else None
            yield picture[..., None] if self._gray else picture, vectors

    def _check_complete(self) -> None:
        """Raise _Damage where the container promised more than it held.

        MP4 keeps edited-out frames in its count, so there the promised time must be missing too;
        Matroska has no count, only a time.
        """
        stream, base = self._stream, float(self._stream.time_base)
        kind = self._container.format.name
        end_s = self._end_pts * base
        if self._packets < stream.frames:
            promised_s = float(stream.duration * base) if stream.duration else np.inf
            if "mp4" not in kind or end_s < promised_s - 0.5 / self._rate:
                raise _Damage(f"the file ends early, it promises {stream.frames} frames")
        elif "matroska" in kind:
            promised_s = _matroska_seconds(self._container, stream) or 0.0
            # 1.5 frames: Matroska rounds to milliseconds and may not know the last duration
            if end_s < promised_s - 1.5 / self._rate:
                raise _Damage(f"the file ends early, it promises {promised_s:.2f} s")

    def _report(self, damage: _Damage) -> str:
        seconds = self._delivered / self._rate
        if self._last_pts is not None:
            seconds = (self._last_pts + self._frame_pts) * float(self._stream.time_base)
        return f"{self._path}: damaged at frame {self._delivered} ({seconds:.2f} s): {damage}"


def read_vectors(frame: Any) -> Vectors | None:
    """Read the motion vectors of a decoded frame that lead to earlier ones; None without any."""
    data = frame.side_data.get("MOTION_VECTORS")
    if data is None:
        return None
    table = data.to_ndarray()
    # below 0: from an earlier frame (which one, FFmpeg does not say)
    table = table[table["source"] < 0]
    scale = table["motion_scale"]
    blocks = np.empty((len(table), 5), np.float32)
    # FFmpeg counts from the picture's edge, pixel centres lie half a pixel further
    blocks[:, 0], blocks[:, 1] = table["dst_x"] - 0.5, table["dst_y"] - 0.5
    blocks[:, 2], blocks[:, 3] = table["motion_x"] / scale, table["motion_y"] / scale
    blocks[:, 4] = table["w"].astype(np.float32) * table["h"]
    return Vectors(blocks, (frame.height, frame.width), frame.pict_type != PictureType.B)


def _guarded(call: Callable[[], Any], pts: int | None) -> Any:
    """Call into FFmpeg and turn its refusal into _Damage."""
    with _FFMPEG_LOG:
        try:
            return call()
        except av.FFmpegError as error:
            raise _Damage(_said(error), pts) from error


def _matroska_seconds(container: Any, stream: Any) -> float | None:
    """Seconds that a Matroska file promises for this stream; None where it does not say."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return None


def _said(error: Exception) -> str:
    """What FFmpeg says about a failure: its last message where there is one, and the error."""
    log = getattr(error, "log", None)
    text = getattr(error, "strerror", None) or str(error)
    return f"{log[2].strip()} ({text})" if log else text


class _FfmpegLog:
    """While entered, FFmpeg's error messages are attached to the exceptions that they explain.

    FFmpeg has one log level for the whole process: it is raised by the first user, from whatever
    thread, and put back by the last one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._level: int | None = None
        self._local = threading.local()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._level = av.logging.get_level()
                if self._level is None:
                    av.logging.set_level(av.logging.ERROR)
            self._users += 1
        # captured, so that the messages reach nobody else's log
        self._local.capture = av.logging.Capture(local=True)
        self._local.capture.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._local.capture.__exit__(*exc)
        with self._lock:
            self._users -= 1
            if self._users == 0:
                av.logging.set_level(self._level)


_FFMPEG_LOG = _FfmpegLog()
