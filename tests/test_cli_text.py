"""Text from outside stays as it is: no markup, no emoji, no colours of its own."""

from __future__ import annotations

import io
import re

import pytest
from rich.table import Table
from typer.testing import CliRunner

from torchdelta.cli.app import app
from torchdelta.cli.track import Track, summary
from torchdelta.console import PlainConsole, doing
from torchdelta.report.progress import Meter
from torchdelta.runtime.stats import FrameStats
from torchdelta.stages import stage

NASTY = "cam[lobby] :x: [red]a[/red] [/] blocks[0] 12 http://a"


def console(*, terminal: bool = False) -> tuple[PlainConsole, io.StringIO]:
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor"} if terminal else {}
    return PlainConsole(file=file, width=200, **options), file


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_and_tables_keep_text(terminal: bool) -> None:
    out, file = console(terminal=terminal)
    out.say(NASTY * 9)
    out.print(NASTY)
    table = Table("name", NASTY, title=NASTY)
    table.add_row(NASTY, "1")
    out.print(table)
    text = file.getvalue()
    assert text.startswith(f"{NASTY * 9}\n{NASTY}\n")
    assert text.count(NASTY) == 9 + 1 + 3


def test_figures_and_news_keep_names() -> None:
    out, file = console()
    track = Track(NASTY, size=(4, 4))
    track.add(FrameStats(0, True, 1.0, 1.0, 1.0, 5.0, "first frame"), None)
    out.print(summary([track], False))
    with doing(out, NASTY):
        stage(NASTY)
    assert file.getvalue().count(NASTY) == 3
    shown, screen = console(terminal=True)
    with doing(shown, NASTY):
        stage(NASTY + "!")
    with Meter(shown, 3) as meter:
        meter.add(None)
    assert NASTY in screen.getvalue()


def test_errors_keep_names() -> None:
    name = "cam[lobby]:x:[/].mp4"
    result = CliRunner().invoke(app, ["run", name, "--model", "timm:resnet50"])
    assert (result.exit_code, name in result.stderr) == (1, True), result.stderr
    result = CliRunner().invoke(app, ["run", ".", "--model", "timm:resnet50", "--size", "[b]:x:"])
    assert (result.exit_code, "'[b]:x:' is no size" in result.stderr) == (2, True), result.stderr


def test_nobody_listens_outside() -> None:
    out, file = console()
    with doing(out):
        pass
    stage("silent")
    assert file.getvalue() == ""


@pytest.mark.parametrize("command", ["run", "bench", "explain", "demo", "env"])
def test_help_names_no_type_of_flags_and_no_cut_lists(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"}).stdout
    assert "bool" not in text
    assert "list[" not in text
    assert "<int" not in text
    assert "<path>" not in text
    # a list of choices that the column's edge breaks is cut within a word
    lists = [re.sub("[<>]=", "", line) for line in text.splitlines()]
    assert not [line for line in lists if line.count("<") != line.count(">")]
    if command in ("run", "bench", "explain"):
        assert "─ Options" not in text
    assert "…" not in text
    if command == "run":
        panels = ["Network", "Speed and precision", "Output", "Moving cameras"]
        places = [text.index(f"─ {panel}") for panel in panels]
        assert places == sorted(places)
        assert "and of the picture" in " ".join(text.replace("│", " ").split())
    if command == "bench":
        flat = " ".join(text.replace("│", " ").split())
        assert "torch,compile,onnxruntime,openvino" in flat
        assert "Instead of --source" in flat
