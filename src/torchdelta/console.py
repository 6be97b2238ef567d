"""What the commands print: text from outside stays as it is, and tables have room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from torchdelta.stages import stage, told_to

# a table needs more than the 80 columns that rich assumes where there is no terminal
PLAIN_WIDTH = 120


class PlainConsole(Console):
    """A console to which text is text: names of files, layers and errors hold brackets and colons.

    Nothing is taken for markup, an emoji or a number to be coloured, in tables neither, and lines
    are left to the terminal to wrap, so that a path can be copied.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line of text, however long."""
        self.print(text, style=style, soft_wrap=True)


@contextlib.contextmanager
def doing(log: PlainConsole, first: str | None = None) -> Iterator[None]:
    """Show what is being done while entered: one line that changes in a terminal, else a line each.

    first: what is done first; after it, what `stages.stage` says
    """
    if not log.is_terminal:
        with told_to(log.say):
            if first:
                stage(first)
            yield
        return
    # a Text: what stages name comes from outside
    with log.status(Text(first or "")) as status, told_to(lambda text: status.update(Text(text))):
        yield


def console(stderr: bool = False) -> PlainConsole:
    """A console that gives tables room where the output is not a terminal."""
    made = PlainConsole(stderr=stderr)
    return made if made.is_terminal else PlainConsole(stderr=stderr, width=PLAIN_WIDTH)
