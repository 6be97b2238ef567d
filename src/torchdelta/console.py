"""What the commands print: text from outside stays as it is, and tables have room."""

from __future__ import annotations

from typing import Any

from rich.console import Console

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


def console(stderr: bool = False) -> PlainConsole:
    """A console that gives tables room where the output is not a terminal."""
    made = PlainConsole(stderr=stderr)
    return made if made.is_terminal else PlainConsole(stderr=stderr, width=PLAIN_WIDTH)
