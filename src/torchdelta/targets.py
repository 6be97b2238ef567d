"""Where output goes: a regular file is replaced, all else is written to as it is.

What /dev and /proc name, a pipe, or a descriptor that somebody else has opened may hold what is
not ours: it is never truncated, replaced or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torchdelta.errors import SinkError

STANDARD_OUTPUT = 1
# as many links as Linux follows
MAX_LINKS = 40
DESCRIPTOR = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")


@dataclass(frozen=True)
class Target:
    """What a path leads to.

    path:       as the user named it
    file:       what it leads to, links followed
    regular:    a regular file, or nothing yet: it may be replaced
    descriptor: of this process, where the path is another name of one
    """

    path: Path
    file: Path
    regular: bool
    descriptor: int | None = None

    def open(self) -> int:
        """Open it for appending, what it holds left alone; returns a descriptor of our own.

        Raises OSError.
        """
        if self.descriptor is not None:
            # opened by its name a regular file would be written from its beginning
            if fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(9, "the descriptor is open for reading only")
            return os.dup(self.descriptor)
        flags = os.O_WRONLY | os.O_APPEND
        return os.open(self.file, flags | os.O_CREAT if self.regular else flags, 0o666)


def target_of(path: str | os.PathLike[str]) -> Target:
    """Find out what a path leads to."""
    named = Path(path)
    file = named
    for _ in range(MAX_LINKS):
        # what lies below /proc are links that lead past their text, so they are not followed
        file = Path(os.path.realpath(file.parent)) / file.name
        own = DESCRIPTOR.fullmatch(str(file))
        if own and int(own[1]) == os.getpid():
            return Target(named, file, regular=False, descriptor=int(own[2]))
        if file.is_relative_to("/proc") or not file.is_symlink():
            break
        file = file.parent / os.readlink(file)
    try:
        regular = stat.S_ISREG(file.stat().st_mode)
    except OSError:
        # not there yet, or it cannot be said: opening it will tell
        regular = True
    return Target(named, file, regular and not file.is_relative_to("/proc"))


def names_standard_output(path: str | os.PathLike[str] | None) -> bool:
    """Whether output to a path is meant for standard output: "-", /dev/stdout and its like."""
    return path is not None and (
        os.fspath(path) == "-" or target_of(path).descriptor == STANDARD_OUTPUT
    )


def open_elsewhere(path: str | os.PathLike[str]) -> int | None:
    """Give the descriptor of this process through which an existing regular file is open."""
    target = target_of(path)
    try:
        wanted = target.file.stat()
        numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        return None
    if not target.regular:
        return None
    for number in numbers:
        with contextlib.suppress(OSError):
            if os.path.samestat(wanted, os.fstat(number)):
                return number
    return None


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write bytes, or a text as UTF-8: a file whole or not at all, all else from where it stands.

    Raises SinkError.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    target = target_of(path)
    try:
        if target.regular:
            _replace(target.file, data)
        else:
            with os.fdopen(target.open(), "wb", buffering=0) as file:
                write_all(file.fileno(), data)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in several turns where a pipe takes less; raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]


def _replace(file: Path, data: bytes) -> None:
    descriptor, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
        # mkstemp keeps its files to the user alone
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
