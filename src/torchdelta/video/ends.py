"""Whether a video file ends inside a packet, where FFmpeg's demuxers do not say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

SYNC = 0x47
# a transport packet, and what recorders put around it: before (a time), after (parity)
TS_PACKETS = ((188, 188), (192, 188), (204, 204))
SEGMENT, CLUSTER, EBML = 0x18538067, 0x1F43B675, 0x1A45DFA3


def ends_inside_packet(path: Path, container: str) -> bool:
    """Tell for MPEG-TS and Matroska; False for others, whose demuxers mark what is cut off.

    container: FFmpeg's name of the format
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if "mpegts" in container:
            return _in_transport_packet(file)
        if "matroska" in container:
            return _in_block(file, os.fstat(file.fileno()).st_size)
    return False


def _in_transport_packet(file: BinaryIO) -> bool:
    """Whether the last of the evenly spaced packets at the end is incomplete."""
    count = 8
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - (count + 1) * 204))
    tail = file.read()
    for spacing, length in TS_PACKETS:
        for last in range(len(tail) - 1, len(tail) - 1 - spacing, -1):
            places = range(last, last - count * spacing, -spacing)
            if places[-1] >= 0 and all(tail[at] == SYNC for at in places):
                return len(tail) - last < length
    return False


def _in_block(file: BinaryIO, size: int) -> bool:
    """Whether an element of the file is longer than what is there of it."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        found = _element(head)
        if found is None:
            return at + len(head) >= size
        kind, length, header = found
        if kind == SEGMENT or (kind == CLUSTER and (length is None or at + header + length > size)):
            at += header
        elif length is None:
            return False
        else:
            at += header + length
    return at > size


def _element(head: bytes) -> tuple[int, int | None, int] | None:
    """Kind, length (None: to the end of what holds it) and header's length; None: no whole one."""
    if not head or not head[0]:
        return None
    kind_bytes = 9 - head[0].bit_length()
    if len(head) <= kind_bytes or not head[kind_bytes]:
        return None
    length_bytes = 9 - head[kind_bytes].bit_length()
    end = kind_bytes + length_bytes
    if len(head) < end:
        return None
    mask = (1 << 7 * length_bytes) - 1
    length = int.from_bytes(head[kind_bytes:end], "big") & mask
    return int.from_bytes(head[:kind_bytes], "big"), None if length == mask else length, end
