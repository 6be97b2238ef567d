"""Faults that are planted in the sources to see whether tests notice: `tools/mutants.py` runs them.

Those of a subject stand in `mutants_SUBJECT.py`, beside its tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault: in the function `where` of `file` `old` becomes `new`; `tests` must notice.

    file:  below src/torchdelta, or from native/ on
    where: its name, in Python with the names of what it lies in ("Session.join")
    old:   occurs there once
    tests: files below tests/
    names: which of their tests, as pytest's -k says it
    few:   whether it is among the few that `make mutants` plants
    interpreted: whether the tests run in Triton's interpreter
    """

    name: str
    file: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]
    names: str = ""
    few: bool = False
    interpreted: bool = False

    @property
    def path(self) -> str:
        """Where the file lies in the repository."""
        return self.file if self.native else f"src/torchdelta/{self.file}"

    @property
    def native(self) -> bool:
        """Whether the library must be built again."""
        return self.file.startswith("native/")

    def planted(self, text: str) -> str:
        """Give the file's text with the fault in it.

        Raises: LookupError where there is no such function, or `old` is not in it once.
        """
        found = [
            begin + at
            for begin, end in spans(text, self.where, python=not self.native)
            for at in places(text[begin:end], self.old)
        ]
        if len(set(found)) != 1:
            raise LookupError(
                f"{self.path}: the fault applies {len(set(found))} times in {self.where}, "
                "expected once"
            )
        return text[: found[0]] + self.new + text[found[0] + len(self.old) :]


def places(text: str, part: str) -> Iterator[int]:
    """Say where a part begins in a text."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def spans(text: str, name: str, *, python: bool) -> list[tuple[int, int]]:
    """Say where functions of a name lie in a file: (begin, end) of each, the outer one alone."""
    return list(_python_spans(text, name) if python else _native_spans(text, name))


def _python_spans(text: str, name: str) -> Iterator[tuple[int, int]]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def look(node: ast.AST, outer: str) -> Iterator[tuple[int, int]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield from look(child, outer)
                continue
            own = f"{outer}.{child.name}" if outer else child.name
            if own == name and isinstance(child, ast.FunctionDef):
                yield starts[child.lineno - 1], starts[child.end_lineno or 0]
            else:
                yield from look(child, own)

    yield from look(ast.parse(text), "")


def _native_spans(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Find definitions in C++: the name, its arguments, and braces with no `;` before them."""
    for match in re.finditer(rf"\b{re.escape(name)}\s*\(", text):
        at = _closing(text, match.end() - 1, "()")
        while at < len(text) and text[at] not in "{;)=":
            # in a constructor's list of members
            at = _closing(text, at, "()") if text[at] == "(" else at + 1
        if at < len(text) and text[at] == "{":
            yield match.start(), _closing(text, at, "{}")


def _closing(text: str, at: int, pair: str) -> int:
    """Say where the bracket at a place ends, just behind it."""
    depth = 0
    for end in range(at, len(text)):
        depth += (text[end] == pair[0]) - (text[end] == pair[1])
        if depth == 0:
            return end + 1
    return len(text)
