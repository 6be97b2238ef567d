"""Frames from files of pictures: all frames of each, with their depth, and damage told.

What reads a file is decided by how the file begins. JPEG is decoded by libjpeg-turbo, which says
where its data are broken; PNG has checksums, which are looked at first. The other formats carry
neither, and only a part that is missing or makes no sense is noticed.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from torchdelta.errors import SourceError
from torchdelta.video.ffmpeg import FFMPEG_LOG, said
from torchdelta.video.names import printable
from torchdelta.video.records import Decoded, Remark
from torchdelta.video.suffixes import IMAGE_SUFFIXES, VIDEO_FILES

PNG = b"\x89PNG\r\n\x1a\n"
SHOWN_NAMES = 3
# OpenCV's log level that lets nothing through
SILENT = 0
# of EXIF: how a picture is to be turned
ORIENTATION = 0x0112
# what libjpeg warns of that costs no picture
ODD_HEADER = re.compile("JFIF revision|Adobe color transform|Invalid SOS parameters")

# pixels [H, W, C], the largest value that the file can hold, and when it is shown
Frame = tuple[NDArray[Any], float, float | None]


class _Broken(Exception):
    """A file is damaged, or cannot be decoded."""


# ------------------------------------------------------------------------------ files and folders


def is_image(path: Path) -> bool:
    """Whether a file holds pictures: by its name, else by how it begins."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(16)
    # a stream of JPEGs begins as one does, and is a video
    return any(pattern.match(head) for pattern, _ in READERS if pattern is not JPEG)


def images_in(folder: Path) -> tuple[list[Path], list[Remark]]:
    """The pictures in a folder, frame9 before frame10, and what is passed over.

    Raises SourceError where there is none, OSError where the folder cannot be read.
    """
    found = [p for p in folder.iterdir() if not p.name.startswith(".")]
    images = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
    kinds = " ".join(sorted(IMAGE_SUFFIXES))
    videos = sorted(p.name for p in found if p.suffix.lower() in VIDEO_FILES)
    if videos and not images:
        raise SourceError(
            f"{printable(folder)}: this folder holds videos ({printable(videos[0])} …), which is a "
            "batch for torchdelta run; here name one of them"
        )
    if not images:
        raise SourceError(f"{printable(folder)}: this folder holds no image ({kinds})")
    others = sorted(printable(p.name) for p in set(found) - set(images))
    if not others:
        return sorted(images, key=_natural_order), []
    shown = ", ".join(others[:SHOWN_NAMES]) + (", …" if len(others) > SHOWN_NAMES else "")
    note = f"{printable(folder)}: passed over {len(others)} that are no images: {shown}"
    return sorted(images, key=_natural_order), [Remark("note", note)]


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Key that puts frame9 before frame10: digits and the text between them take turns."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], path.name


def image_frames(
    images: list[Path], skip_damaged: bool, remarks: list[Remark]
) -> Iterator[Decoded]:
    """All frames of the files, in order; times are those of a single animated file.

    Raises SourceError at a damaged file, after the frames before the damage; with skip_damaged it
    is left out, and a remark says so.
    """
    index = 0
    for image in images:
        name = printable(image)
        try:
            for pixels, full, pts_s in frames_of(image.read_bytes()):
                yield Decoded(pixels, name, full, pts_s if len(images) == 1 else None)
                index += 1
        except (_Broken, OSError) as error:
            broken = isinstance(error, _Broken)
            what = f"is {error}" if broken else f"cannot be read: {_strerror(error)}"
            text = f"{name}: frame {index} {what}"
            if not skip_damaged:
                raise SourceError(text) from error
            remarks.append(Remark("damage", f"{text}; left out"))


def _strerror(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def frames_of(data: bytes) -> Iterator[Frame]:
    """Decode all frames of one file; raises _Broken where it is damaged or is no image."""
    if not data:
        raise _Broken("damaged or is no image: it is empty")
    reader = next((read for pattern, read in READERS if pattern.match(data)), _pillow)
    try:
        yield from reader(data)
    except av.FFmpegError as error:
        raise _Broken(f"damaged or is no image: {said(error)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow has no error of its own for files that it finds broken
        raise _Broken(f"damaged or is no image: {error}") from error


def count_frames(path: Path) -> int | None:
    """Number of frames that one file promises, None where it does not say."""
    with contextlib.suppress(Exception):
        data = path.read_bytes()
        if TIFF.match(data):
            return len(_tiff_pages(data))
        if EXR.match(data) or JP2.match(data):
            return 1
        with Image.open(io.BytesIO(data)) as picture:
            first = bool(getattr(picture, "default_image", False))
            return int(getattr(picture, "n_frames", 1)) - first
    return None


# ---------------------------------------------------------------------------------------- formats


def _jpeg(data: bytes) -> Iterator[Frame]:
    *_, colours, _ = simplejpeg.decode_jpeg_header(data)
    wanted = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "RGB")
    try:
        pixels = simplejpeg.decode_jpeg(data, wanted)
    except ValueError as error:
        if not ODD_HEADER.search(str(error)):
            raise _Broken(f"damaged: {error}") from error
        pixels = simplejpeg.decode_jpeg(data, wanted, strict=False)
    if wanted == "CMYK":
        # checked above; Pillow knows who writes these inverted
        yield from _pillow(data)
        return
    turned = 1
    if b"Exif" in data[: 2**16]:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:
            turned = int(picture.getexif().get(ORIENTATION, 1))
    yield _upright(pixels, turned), 255, None


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror a picture as EXIF says (1: as it is)."""
    turns, mirrored = {
        2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True),
        8: (1, False),
    }.get(orientation, (0, False))  # fmt: skip
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def _png(data: bytes) -> Iterator[Frame]:
    """Pillow knows every kind of PNG, FFmpeg keeps 16 bits."""
    kinds = [kind for kind, _ in _png_chunks(data)]
    if data[24] < 16:
        yield from _pillow(data)
        return
    animated = b"acTL" in kinds
    yield from _ffmpeg(data, "apng" if animated else "png_pipe", timed=animated)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and place of each chunk; raises _Broken where one does not fit its checksum."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        if at + 8 > len(data):
            raise _Broken("damaged: the file ends early")
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            raise _Broken("damaged: the file ends early")
        (stored,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(memoryview(data)[at + 4 : end]) != stored:
            name = kind.decode("ascii", "backslashreplace")
            raise _Broken(f"damaged: the checksum of its part {name} is wrong")
        yield kind, at
        at = end + 4


def _tiff(data: bytes) -> Iterator[Frame]:
    pages = _tiff_pages(data)
    found = _opencv(lambda: cv2.imdecodemulti(_bytes(data), cv2.IMREAD_UNCHANGED))
    pictures = found[1] if found is not None and found[0] else ()
    for picture in pictures:
        pixels, full = _from_opencv(picture)
        yield pixels, full, None
    if len(pictures) < len(pages):
        raise _Broken(f"damaged: {len(pages)} pages, page {len(pictures) + 1} cannot be decoded")


def _tiff_pages(data: bytes) -> list[int]:
    """Where the directory of each page lies; raises _Broken where one lies outside the file."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    # a directory: its number of entries, the entries, where the next one lies
    start, place, number, entry = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    pages: list[int] = []
    try:
        (at,) = struct.unpack_from(order + place, data, start)
        while at and at not in pages:
            (entries,) = struct.unpack_from(order + number, data, at)
            following = at + struct.calcsize(order + number) + entry * entries
            pages.append(at)
            (at,) = struct.unpack_from(order + place, data, following)
    except struct.error as error:
        raise _Broken("damaged: the file ends early") from error
    return pages


def _opencv_single(data: bytes) -> Iterator[Frame]:
    picture = _opencv(lambda: cv2.imdecode(_bytes(data), cv2.IMREAD_UNCHANGED))
    if picture is None:
        raise _Broken("damaged or is no image")
    pixels, full = _from_opencv(picture)
    yield pixels, full, None


def _opencv(decode: Callable[[], Any]) -> Any:
    """Call OpenCV without its lines on standard error; None where it fails."""
    with quiet_opencv():
        try:
            return decode()
        except cv2.error:
            return None


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own lines from standard error; its log level belongs to the whole process."""
    # up to 4.12 they are functions of the module itself
    log: Any = getattr(cv2.utils, "logging", cv2)
    level = log.getLogLevel()
    log.setLogLevel(SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _from_opencv(picture: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Channels in our order, and values in one of our types."""
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.shape[2] > 4:
        raise _Broken(f"of no use: it has {pixels.shape[2]} channels, expected 1 to 4")
    pixels = pixels[..., {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(pixels.shape[2], slice(None))]
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels, float(np.iinfo(pixels.dtype).max)
    return pixels.astype(np.float32), 1.0


def _exr(data: bytes) -> Iterator[Frame]:
    yield from _ffmpeg(data, "exr_pipe", timed=False)


def _ffmpeg(data: bytes, kind: str, *, timed: bool) -> Iterator[Frame]:
    with FFMPEG_LOG, av.open(io.BytesIO(data), "r", format=kind) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.options = {"err_detect": "explode+crccheck"}
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise _Broken("damaged: the decoder reports a corrupt frame")
            pixels, full = from_ffmpeg(frame)
            yield pixels, full, float(frame.time) if timed and frame.time is not None else None


def from_ffmpeg(frame: Any) -> tuple[NDArray[Any], float]:
    """A decoded frame with its own depth: [H, W, C] uint8, uint16 or float32; its largest value.

    Of more than 8 bits, formats other than grey, RGB and RGBA are brought to 8.
    """
    parts = frame.format.components
    bits = parts[0].bits
    if bits <= 8 or frame.format.name.startswith("yuv"):
        wanted = "gray" if len(parts) == 1 and not frame.format.has_palette else "rgb24"
        if len(parts) in (2, 4) or frame.format.has_palette:
            wanted = "rgba"
        pixels = frame.to_ndarray(format=wanted)
        return pixels[..., None] if pixels.ndim == 2 else pixels, 255
    if frame.format.name.startswith("ya16"):
        # PyAV does not know it
        dtype = np.dtype(">u2" if frame.format.name.endswith("be") else "<u2")
        rows = np.frombuffer(frame.planes[0], dtype).reshape(frame.height, -1)
        pixels = rows[:, : 2 * frame.width].reshape(frame.height, frame.width, 2)
    else:
        pixels = frame.to_ndarray()
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32), 1.0
    return pixels.astype(np.uint16), 2**bits - 1


def _pillow(data: bytes) -> Iterator[Frame]:
    try:
        picture = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise _Broken("damaged or is no image") from error
    with picture:
        # the picture for readers that know no animations is no part of one
        first = int(bool(getattr(picture, "default_image", False)))
        shown_ms = 0.0
        for index in range(first, getattr(picture, "n_frames", 1)):
            picture.seek(index)
            picture.load()
            pixels, full = _from_pillow(picture)
            duration_ms = picture.info.get("duration")
            yield pixels, full, None if duration_ms is None else shown_ms / 1000
            shown_ms += duration_ms or 0


def _from_pillow(picture: Image.Image) -> tuple[NDArray[Any], float]:
    deep = picture.mode.startswith(("I", "F"))
    if not deep:
        plain = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}.get(picture.mode, "RGB")
        if "transparency" in picture.info and plain in ("L", "RGB"):
            plain += "A"
        picture = picture.convert(plain)
    pixels = np.asarray(ImageOps.exif_transpose(picture))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if not deep:
        return pixels, 255
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32), 1.0
    return pixels.astype(np.uint16), 65535


JPEG = re.compile(rb"\xff\xd8\xff")
TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
EXR = re.compile(rb"v/1\x01")
JP2 = re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")
READERS: list[tuple[re.Pattern[bytes], Callable[[bytes], Iterator[Frame]]]] = [
    (JPEG, _jpeg),
    (re.compile(re.escape(PNG)), _png),
    (TIFF, _tiff),
    (EXR, _exr),
    # Pillow brings its 16 bits to 8
    (JP2, _opencv_single),
    (re.compile(rb"#\?RADIANCE|#\?RGBE"), _opencv_single),
    (re.compile(rb"GIF8|RIFF....WEBP", re.S), _pillow),
]
