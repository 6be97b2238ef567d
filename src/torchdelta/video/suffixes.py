"""Which files are images and videos, by their names; light, since names are checked first."""

from pathlib import Path

from torchdelta.errors import SinkError

IMAGE_SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .webp .gif .tif .tiff .jp2 .j2k .pgm .ppm .pnm .exr "
    ".hdr".split()
)
# of files that are taken for videos in a folder; a file that is named may have any suffix
VIDEO_FILES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .m2v .ts .m2ts .mts .vob .wmv .asf .flv .3gp .3g2 "
    ".ogv .mxf .y4m .264 .h264 .265 .hevc .av1 .ivf .mjpeg .mjpg".split()
)
# of videos that can be written
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")


def check_video_name(path: Path) -> None:
    """Refuse to write a video of another kind; raises SinkError."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise SinkError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; "
            f"a video's name ends in {', '.join(VIDEO_SUFFIXES)}"
        )
