"""The documents as tests read them: sections, tables, code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """Give what stands below a heading, up to the next one of its rank or above."""
    rank, rest = re.split(rf"^(##+) {re.escape(title)}$", text(name), flags=re.M)[1:]
    return re.split(rf"^#{{2,{len(rank)}}} ", rest, flags=re.M)[0]


def blocks(name: str, language: str) -> list[str]:
    """Give the code blocks of a language ("" for those without one)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(name), flags=re.M | re.S)
    return [code for kind, code in found if kind == language]


def rows(table: str) -> list[list[str]]:
    """Give the cells of a table's rows, without the head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
