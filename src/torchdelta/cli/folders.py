"""Folders of videos among the sources: they are batches; light, since names are checked first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchdelta.errors import SourceError
from torchdelta.video.suffixes import IMAGE_SUFFIXES, VIDEO_FILES


def videos_in(sources: Sequence[str]) -> list[Path] | None:
    """Give the videos of the folder that is the one source, in order; None where it is no batch.

    Raises SourceError for a folder that holds images too, or that stands beside other sources.
    """
    for source in sources:
        folder = Path(source)
        # a camera's index is a folder's name where such a folder exists
        if not folder.is_dir():
            continue
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        videos = [p for p in entries if p.suffix.lower() in VIDEO_FILES and p.is_file()]
        if not videos:
            continue
        images = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES]
        if images:
            raise SourceError(
                f"{folder}: holds {_count(videos, 'video')} ({videos[0].name} …) and "
                f"{_count(images, 'image')} ({images[0].name} …); a folder is either the images of "
                "one video or a batch of videos: put them into folders of their own"
            )
        if len(sources) > 1:
            raise SourceError(
                f"{folder}: holds {_count(videos, 'video')}, which run one after another; give it "
                "alone, or name the videos themselves to run them as streams of one session"
            )
        return videos
    return None


def _count(files: Sequence[Path], what: str) -> str:
    return f"{len(files)} {what}{'s' if len(files) != 1 else ''}"
