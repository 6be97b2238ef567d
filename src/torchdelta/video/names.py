"""What the name of a source stands for: a file, a folder, a camera; and names in messages.

It imports nothing but the standard library: a name that stands for nothing is refused before
anything heavy is loaded.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torchdelta.errors import SourceError

CAMERA = re.compile(r"camera:(\d+)")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
EXPECTED = "a source is a video file, a folder of images or a camera (its index, or camera:INDEX)"


@dataclass(frozen=True)
class Name:
    """What a name stands for: a camera, or else what lies at a path.

    note: what the user should know about the choice, else None
    """

    camera: int | None = None
    path: Path = Path()
    note: str | None = None

    @property
    def is_pipe(self) -> bool:
        """Whether it is a pipe, which can be read once only."""
        return self.camera is None and self.path.is_fifo()


def resolve(spec: str | os.PathLike[str] | int) -> Name:
    """Find out what a name stands for; what exists on disk comes before everything but "camera:0".

    Raises SourceError where it stands for nothing that can be read.
    """
    if isinstance(spec, int):
        if spec < 0:
            raise SourceError(f"camera {spec}: an index counts from 0")
        return Name(camera=spec)
    text = os.fspath(spec)
    if camera := CAMERA.fullmatch(text):
        return Name(camera=int(camera[1]))
    if not text:
        raise SourceError(f"a source's name is empty; {EXPECTED}")
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _not_on_disk(spec, text)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise SourceError(f"{printable(text)}: cannot be read: {said}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
        video = re.fullmatch(r"/dev/video(\d+)", text)
        hint = f"; camera:{video[1]} names this camera" if video else ""
        raise SourceError(f"{printable(text)}: is a device and no file; {EXPECTED}{hint}")
    note = None
    if _is_index(spec, text):
        kind = "folder" if stat.S_ISDIR(mode) else "file"
        note = f"{text} is a {kind} here; camera:{text} names the camera"
    return Name(path=path, note=note)


def files_of(specs: Iterable[str]) -> list[Path]:
    """The files and folders among sources; cameras are none."""
    found = map(resolve, specs)
    return [name.path for name in found if name.camera is None]


def _is_index(spec: object, text: str) -> bool:
    return isinstance(spec, str) and text.isascii() and text.isdecimal()


def _not_on_disk(spec: object, text: str) -> Name:
    if _is_index(spec, text):
        return Name(camera=int(text))
    shown = printable(text)
    if text.startswith("file://"):
        raise SourceError(f"{shown}: a URL; give the file's path, without file://")
    if isinstance(spec, str) and URL.match(text):
        raise SourceError(
            f"{shown}: a URL. URLs come with live sources, which are not built yet; until then "
            "save the video to a file first"
        )
    raise SourceError(f"{shown}: no such file or folder; {EXPECTED}")


def printable(name: str | os.PathLike[str]) -> str:
    r"""Give a name as text that can be printed: bytes that are no UTF-8 become \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def ffmpeg_url(path: str | os.PathLike[str]) -> str:
    """Name a file to FFmpeg, which takes "12:30.mp4" and "concat:x.mp4" for protocols."""
    return f"file:{os.fspath(path)}"
