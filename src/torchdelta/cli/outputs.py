"""Where the files of a run go, and that they replace nothing that the run reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchdelta.errors import SinkError
from torchdelta.targets import names_standard_output, open_elsewhere
from torchdelta.video.suffixes import IMAGE_SUFFIXES

STREAMS = ("standard input", "standard output", "standard error")


def is_folder(path: Path) -> bool:
    """Whether a path given for outputs is a folder for them: it is one, or has no suffix."""
    if names_standard_output(path):
        return False
    return path.is_dir() or (not path.suffix and not path.exists())


def video_paths(path: Path, streams: Sequence[str]) -> dict[str, Path]:
    """Where each stream's video goes.

    The path itself; OUT-STREAM.mp4 where there are several streams; STREAM.mp4 in it where it is a
    folder.
    """
    if is_folder(path):
        return paths_in(path, streams, ".mp4")
    if len(streams) == 1:
        return {streams[0]: path}
    return _paths(path.parent, f"{path.stem}-", streams, path.suffix)


def paths_in(folder: Path, streams: Sequence[str], suffix: str) -> dict[str, Path]:
    """Name a file for each stream in a folder; the suffix of a stream's own file is left out."""
    stems = {stream: Path(stream).stem for stream in streams}
    alone = len(set(stems.values())) == len(streams)
    named = _paths(folder, "", [stems[s] if alone else s for s in streams], suffix)
    return dict(zip(streams, named.values(), strict=True))


def _paths(folder: Path, start: str, streams: Sequence[str], suffix: str) -> dict[str, Path]:
    """Name files: signs that a name should not have become "_", a number keeps names apart."""
    paths: dict[str, Path] = {}
    for stream in streams:
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in stream)
        stem, number = f"{start}{plain}", 2
        while (target := folder / f"{stem}{suffix}") in paths.values():
            stem, number = f"{start}{plain}-{number}", number + 1
        paths[stream] = target
    return paths


def check_outputs(outputs: Sequence[tuple[str, Path]], inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse outputs that would replace an input or one another; links count as their file.

    outputs, inputs: what the user calls it ("--save", "the source", ...), and its path; an input
                     that is a folder stands for the images in it

    Raises SinkError.
    """
    given = list(inputs)
    for index, (name, path) in enumerate(outputs):
        if names_standard_output(path):
            continue
        for other, taken in (*given, *outputs[:index]):
            if _is_same(path, taken) or _is_image_of(path, taken):
                raise SinkError(
                    f"{name} {path} would overwrite {other} {taken}; give another file name"
                )


def check_not_open(outputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse outputs that the process was started with (`--json x > x`): two would write to them.

    Only before it opens files of its own. Raises SinkError.
    """
    for name, path in outputs:
        number = open_elsewhere(path)
        if number is not None:
            what = STREAMS[number] if number < len(STREAMS) else f"descriptor {number}"
            raise SinkError(f"{name} {path} is open as {what} already; give another file name")


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        # one of them does not exist yet
        return os.path.realpath(a) == os.path.realpath(b)


def _is_image_of(path: Path, folder: Path) -> bool:
    return (
        folder.is_dir() and path.suffix.lower() in IMAGE_SUFFIXES and _is_same(path.parent, folder)
    )
