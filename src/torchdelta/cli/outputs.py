"""Where the files of a run go, and that they replace nothing that the run reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchdelta.errors import SinkError
from torchdelta.targets import names_standard_output, open_elsewhere
from torchdelta.video.suffixes import IMAGE_SUFFIXES

STREAMS = ("standard input", "standard output", "standard error")


def video_paths(path: Path, streams: Sequence[str]) -> dict[str, Path]:
    """Where each stream's video goes: the path itself, or OUT-STREAM.mp4 where there are several.

    Signs that a file name should not have become "_"; a number keeps such names apart.
    """
    if len(streams) == 1:
        return {streams[0]: path}
    paths: dict[str, Path] = {}
    for stream in streams:
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in stream)
        stem, number = f"{path.stem}-{plain}", 2
        while (target := path.with_name(stem + path.suffix)) in paths.values():
            stem, number = f"{path.stem}-{plain}-{number}", number + 1
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
