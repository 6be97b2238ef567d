"""Frames of a video file, good ones told from damaged ones as far as FFmpeg can.

Damage is: the decoder refuses a packet, a decoded frame is marked corrupt, or the file ends inside
a packet. What a file promises beyond what it holds (a count, a duration) is no damage, nor is a
place where two recordings were joined.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from torchdelta.errors import SourceError
from torchdelta.motion.vectors import Vectors
from torchdelta.video.ends import ends_inside_packet
from torchdelta.video.ffmpeg import FFMPEG_LOG, listened, said
from torchdelta.video.images import from_ffmpeg
from torchdelta.video.names import ffmpeg_url, printable
from torchdelta.video.records import Decoded, Remark

DEFAULT_FPS = 25.0
# H.264 and HEVC allow 16 reference pictures, so no B-frame waits for more than these.
MAX_B_FRAMES = 16
# packets after a marked one whose times tell lost data from a join: parsers lag behind by one
DOUBTFUL_PACKETS = 3
# reads that fail one after the other, after which nothing more is to be had
FAILED_READS = 100


def open_video(
    path: Path, channels: int, vectors: bool, skip_damaged: bool, remarks: list[Remark]
) -> tuple[Iterator[Decoded], float | None, int | None]:
    """Open a video file: its frames, frames per second, and how many it promises.

    Raises SourceError where it is no video.
    """
    shown = printable(path)
    with FFMPEG_LOG:
        try:
            container = av.open(ffmpeg_url(path))
        except (av.FFmpegError, ValueError) as error:
            empty = path.is_file() and not path.stat().st_size
            why = "it is empty" if empty else said(error)
            raise SourceError(f"{shown}: cannot be opened as a video: {why}") from error
    try:
        # FFmpeg reads any text file as an ANSI terminal recording
        if not container.streams.video or container.format.name == "tty":
            raise SourceError(f"{shown}: holds no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise SourceError(f"{shown}: no decoder for this video's codec")
        reader = _Reader(path, container, stream, channels, vectors, skip_damaged, remarks)
        rate = stream.average_rate or stream.guessed_rate
        return reader.frames(), float(rate) if rate else None, stream.frames or None
    except BaseException:
        container.close()
        raise


class _Damage(Exception):
    """Decoding met damage: what FFmpeg says, and the time stamp of the packet where known.

    decoded: a damaged frame came out of the decoder, so all good ones before it did as well
    at_end:  nothing comes after it
    """

    def __init__(
        self, text: str, pts: int | None = None, *, decoded: bool = False, at_end: bool = False
    ) -> None:
        super().__init__(text)
        self.pts = pts
        self.decoded = decoded
        self.at_end = at_end


class _Reader:
    """Decodes one video stream.

    FFmpeg's H.264 and MPEG-1/2/4 decoders notice most damage; those of HEVC, VP8/9, AV1 and MJPEG
    little more than packets that are missing or cut off.
    """

    def __init__(
        self, path: Path, container: Any, stream: Any, channels: int, vectors: bool,
        skip_damaged: bool, remarks: list[Remark],
    ) -> None:  # fmt: skip
        self._path = path
        self._shown = printable(path)
        self._container = container
        self._stream = stream
        self._channels = channels
        self._vectors = vectors
        self._skip_damaged = skip_damaged
        self._remarks = remarks
        self._rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        self._base = float(stream.time_base)
        self._frame_pts = 1 / (self._rate * self._base)
        self._is_transport = "mpegts" in container.format.name
        self._demuxed = container.demux(stream)
        # read, but not looked at yet
        self._ahead: Any = None
        self._failed_reads = 0
        self._packets = 0
        self._end_pts = 0
        self._last_dts: int | None = None
        # a packet marked as incomplete, and how many came after it
        self._doubt: tuple[Any, int] | None = None
        self._seen_keyframe = False
        # frames of this part may lack what they are predicted from: corrupt ones are left out
        self._settling = False
        # why frames are being left out until the next keyframe, and how many packets were
        self._skipping: str | None = None
        self._left_out = 0
        self._delivered = 0
        self._last_pts: int | None = None
        # what is added to a frame's time stamp, and whether frames of another part are on their way
        self._shift_pts = 0.0
        self._joined = False
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

    def frames(self) -> Iterator[Decoded]:
        """All good frames; SourceError at damage, unless it is to be skipped."""
        with contextlib.closing(self._container):
            ended = False
            while not ended:
                held: list[Any] = []
                try:
                    yield from self._good(held)
                    ended = True
                except _Damage as damage:
                    if self._doubt is not None:
                        held = [f for f in held if self._is_before_doubt(f)]
                    yield from self._delivering(held)
                    yield from self._delivering(self._still_inside(damage))
                    report = self._report(damage)
                    if not self._skip_damaged:
                        raise SourceError(report) from damage
                    self._leave_out(report)
                    ended = damage.at_end
            self._end_of_skip("nothing good comes after it")
            self._check_promises()

    def _good(self, held: list[Any]) -> Iterator[Decoded]:
        """Decode until the end or the first damage; `held` are frames that may still be lost."""
        for frame in self._decoded():
            if frame.is_corrupt:
                if self._settling:
                    continue
                # held B-frames may be predicted from this one
                held[:] = [f for f in held if self._is_before_doubt(f)]
                raise _Damage("the decoder reports a corrupt frame", decoded=True)
            self._settling = False
            held.append(frame)
            if self._may_be_lost():
                continue
            if frame.pict_type != PictureType.B or len(held) > MAX_B_FRAMES:
                yield from self._delivering(held)
        yield from self._delivering(held)

    # ------------------------------------------------------------------------------- packets

    def _decoded(self) -> Iterator[Any]:
        """Frames as the decoder gives them; _Damage at the first packet that it refuses."""
        for packet in self._packets_to_decode():
            if packet is None:
                yield from self._drained()
                continue
            try:
                frames, errors = _listened(packet.decode, packet.pts)
                if errors and self._doubt is not None:
                    raise _Damage(f"data are missing: {errors[0]}", self._doubt[0].pts)
                yield from frames
            except _Damage:
                # a recording may begin between two keyframes; what comes before is not damage
                if self._seen_keyframe:
                    raise

    def _packets_to_decode(self) -> Iterator[Any]:
        """Packets in the file's order, the last one only if it is whole; None between two parts."""
        for packet in self._read():
            before, self._ahead = self._ahead, packet
            if before is not None:
                yield from self._examined(before)
        ahead, self._ahead = self._ahead, None
        cut = ends_inside_packet(self._path, self._container.format.name)
        # Matroska's demuxer keeps what is cut off to itself
        partial = ahead is not None and (
            (ahead.is_corrupt and not self._is_transport) or (cut and self._is_transport)
        )
        if ahead is not None and not partial:
            yield from self._examined(ahead)
        self._settle_doubt()
        if cut or partial:
            pts = ahead.pts if partial else None
            if self._skipping is None:
                raise _Damage("the file ends inside a packet", pts, at_end=True)
        yield None

    def _read(self) -> Iterator[Any]:
        """Packets with content, as the container has them."""
        while True:
            try:
                packet, _ = _listened(lambda: next(self._demuxed, None), None)
            except _Damage:
                # what raised is used up
                self._demuxed = self._container.demux(self._stream)
                self._failed_reads += 1
                if self._skipping is None:
                    raise
                if self._failed_reads > FAILED_READS:
                    return
                continue
            if packet is None or (packet.dts is None and not packet.size):
                return
            self._failed_reads = 0
            self._packets += 1
            self._end_pts = max(self._end_pts, (packet.pts or 0) + (packet.duration or 0))
            # without content: the frame before it is shown again; the decoder would take it for
            # the end
            if packet.size:
                yield packet

    def _examined(self, packet: Any) -> Iterator[Any]:
        """The packet if it is to be decoded, after None where another recording begins with it."""
        step = None
        if None not in (packet.dts, self._last_dts):
            step = packet.dts - self._last_dts
        self._last_dts = packet.dts if packet.dts is not None else self._last_dts
        gap = step is not None and step > 1.5 * self._frame_pts
        # without a keyframe, times that go back a little are a muxer's carelessness
        back = step is not None and step < (0 if packet.is_keyframe else -1 / self._base)
        if back or (gap and packet.is_keyframe and self._doubt is not None):
            self._begin_part(packet)
            yield None
        elif self._doubt is not None:
            self._look_again(packet, gap)
        if packet.is_corrupt and self._doubt is None:
            self._doubt = (packet, 0)
        if self._skipping is not None:
            if not packet.is_keyframe:
                self._left_out += 1
                return
            self._end_of_skip(f"goes on at the next keyframe, {self._left_out} packets further")
        self._seen_keyframe |= packet.is_keyframe
        yield packet

    def _begin_part(self, packet: Any) -> None:
        """Take what follows for another recording: it is predicted from nothing before it."""
        self._doubt = None
        self._joined = True
        self._seen_keyframe = False
        self._settling = not packet.is_keyframe

    def _look_again(self, packet: Any, gap: bool) -> None:
        """Decide what a packet that is marked as incomplete means, by those after it."""
        assert self._doubt is not None
        marked, count = self._doubt
        if packet.is_keyframe:
            self._settle_doubt()
        elif gap and count < DOUBTFUL_PACKETS:
            raise _Damage("packets are missing", marked.pts)
        else:
            self._doubt = (marked, count + 1)

    def _is_before_doubt(self, frame: Any) -> bool:
        """Whether a frame is shown before the one of a packet that is marked as incomplete."""
        marked = self._doubt[0].pts if self._doubt is not None else None
        return None not in (marked, frame.pts) and frame.pts < marked

    def _may_be_lost(self) -> bool:
        """Whether packets to come may show that frames decoded now are damaged."""
        return self._doubt is not None and self._doubt[1] < DOUBTFUL_PACKETS

    def _settle_doubt(self) -> None:
        """Nothing is wrong around a packet that is marked as incomplete: a join, mostly."""
        if self._doubt is not None:
            self._doubt = None
            text = f"{self._shown}: a packet before {self._place()} is marked as incomplete"
            self._remarks.append(Remark("note", f"{text}, all frames decode; recordings joined?"))

    def _drained(self) -> Iterator[Any]:
        """What is still inside the decoder, which is then ready for another part."""
        context = self._stream.codec_context
        frames, _ = _listened(lambda: context.decode(None), None)
        yield from frames
        context.flush_buffers()

    # -------------------------------------------------------------------------------- damage

    def _still_inside(self, damage: _Damage) -> list[Any]:
        """The good frames that are still inside the decoder when it meets the damage."""
        frames: list[Any] = []
        if damage.decoded:
            return frames
        last_pts: Any = self._last_pts
        with contextlib.suppress(av.FFmpegError), FFMPEG_LOG:
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

    def _leave_out(self, report: str) -> None:
        """Begin to leave out what may be predicted from the damage."""
        self._end_of_skip("nothing good comes before the next damage")
        self._stream.codec_context.flush_buffers()
        self._doubt = None
        self._settling = True
        self._skipping, self._left_out = report, 0

    def _end_of_skip(self, how: str) -> None:
        if self._skipping is not None:
            self._remarks.append(Remark("damage", f"{self._skipping}; {how}"))
            self._skipping = None

    def _check_promises(self) -> None:
        """Remark where the container promised more than it held.

        MP4 counts edited-out frames, AVI those that only repeat the one before, so there the
        promised time must be missing too; Matroska has no count, only a time.
        """
        stream, base = self._stream, self._base
        kind = self._container.format.name
        end_s = (self._end_pts - (stream.start_time or 0)) * base
        promised = None
        if self._packets < stream.frames:
            promised_s = float(stream.duration * base) if stream.duration else np.inf
            by_time = "mp4" in kind or kind == "avi"
            if not by_time or end_s < promised_s - 0.5 / self._rate:
                promised = f"it promises {stream.frames} frames and holds {self._packets}"
        elif "matroska" in kind:
            promised_s = _matroska_seconds(self._container, stream) or 0.0
            # 1.5 frames: Matroska rounds to milliseconds and may not know the last duration
            if self._end_pts * base < promised_s - 1.5 / self._rate:
                promised = f"it promises {promised_s:.2f} s and ends at {self._end_pts * base:.2f}"
        if promised:
            text = f"{self._shown}: the file ends early, {promised}"
            self._remarks.append(Remark("missed", text))

    def _report(self, damage: _Damage) -> str:
        return f"{self._shown}: damaged at {self._place()}: {damage}"

    def _place(self) -> str:
        """Number and time of the next frame."""
        seconds = self._delivered / self._rate
        if self._last_pts is not None:
            seconds = self._seconds(self._last_pts + self._frame_pts)
        return f"frame {self._delivered} ({seconds:.2f} s)"

    # -------------------------------------------------------------------------------- frames

    def _seconds(self, pts: float) -> float:
        """Seconds from the stream's start; a part that was joined on goes on from the last one."""
        start = self._stream.start_time or 0
        return max(0.0, (pts + self._shift_pts - start) * self._base)

    def _delivering(self, frames: list[Any]) -> Iterator[Decoded]:
        """Hand out the frames as arrays, turned as the file says, and empty the list."""
        while frames:
            frame = frames.pop(0)
            pixels, full = self._pixels(frame)
            turns = round(frame.rotation / 90) % 4
            if turns:
                pixels = np.ascontiguousarray(np.rot90(pixels, turns))
            if self._joined and frame.pts is not None and self._last_pts is not None:
                self._join(frame.pts - self._last_pts)
            pts_s = self._delivered / self._rate
            if frame.pts is not None:
                pts_s = self._seconds(frame.pts)
            self._delivered += 1
            self._last_pts = frame.pts
            # blocks of a picture that is turned would have to be turned as well
            vectors = read_vectors(frame) if self._vectors and not turns else None
            yield Decoded(pixels, self._shown, full, pts_s, vectors)

    def _join(self, step_pts: int) -> None:
        """Let the times of another part go on from those before it; frames before it may come."""
        if 0 < step_pts <= 1.5 * self._frame_pts:
            return
        text = f"{self._shown}: another recording begins at {self._place()}"
        self._remarks.append(Remark("note", text))
        self._joined = False
        if step_pts <= 0:
            self._shift_pts += self._frame_pts - step_pts

    def _pixels(self, frame: Any) -> tuple[Any, float]:
        """The frame as the network wants it, or as the file has it where that is more."""
        parts = frame.format.components
        bits = parts[0].bits
        if len(parts) == 1 and bits > 8:
            return from_ffmpeg(frame)
        if bits > 8 and not self._delivered:
            text = f"{bits}-bit colour ({frame.format.name}) is brought to 8 bits"
            self._remarks.append(Remark("note", f"{self._shown}: {text}"))
        alpha = len(parts) in (2, 4) or frame.format.has_palette
        kind = {1: "gray", 3: "rgb24"}.get(self._channels, "rgba" if alpha else "rgb24")
        pixels = frame.to_ndarray(format=kind)
        return pixels[..., None] if pixels.ndim == 2 else pixels, 255


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


def _listened(call: Any, pts: int | None) -> tuple[Any, list[str]]:
    """Call into FFmpeg and turn its refusal into _Damage."""
    try:
        return listened(call)
    except av.FFmpegError as error:
        raise _Damage(said(error), pts) from error


def _matroska_seconds(container: Any, stream: Any) -> float | None:
    """Seconds that a Matroska file promises for this stream; None where it does not say."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return None
