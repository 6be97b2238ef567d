"""The command line behind real redirections: one line says what failed, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

NET = """
from torch import nn
print("a module that prints")
def build(): return nn.Conv2d(3, 2, 3)
"""
COMMAND = f"{sys.executable} -m torchdelta"
BROKEN_PIPE, INTERRUPTED = 141, 130


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in bash; `td` stands for the command."""
    script = f'set -o pipefail; td() {{ {COMMAND} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "net.py").write_text(NET)
    frames = folder / "日本[lobby]:x:"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
        cv2.imwrite(str(folder / "one.png"), picture)
        (folder / "one.png").rename(frames / f"{index}.png")
    return folder


RUN = "td run 日本* --model net:build --engine torch"


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_lines_alone_on_standard_output(target: str, folder: Path) -> None:
    done = shell(f"echo kept > x.jsonl; {RUN} --json {target} >> x.jsonl", folder)
    assert done.returncode == 0, done.stderr
    first, *lines = (folder / "x.jsonl").read_text().splitlines()
    assert first == "kept"
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2]
    assert {json.loads(line)["stream"] for line in lines} == {"日本[lobby]:x:"}
    # the figures, and what the model's module printed
    assert "日本[lobby]:x:" in done.stderr
    assert "a module that prints" in done.stderr
    assert not (folder / "-").exists()


def test_lines_without_a_reader(folder: Path) -> None:
    done = shell(f"{RUN} --json - | true", folder)
    assert done.returncode == BROKEN_PIPE
    assert "Traceback" not in done.stderr


def test_ascii_output_with_names_that_are_not(folder: Path) -> None:
    done = shell(
        f"{RUN} --json out.jsonl", folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C",
        PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.isascii()
    assert "[lobby]:x:" in done.stdout
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["stream"] for line in lines] == ["日本[lobby]:x:"] * 3


def test_streams_that_are_full_or_closed(folder: Path) -> None:
    full = "error: standard output cannot be written: No space left on device\n"
    for line, code, said in (
        ("td --help > /dev/full", 1, full),
        ("td env > /dev/full", 1, full),
        ("td --version 2> /dev/full", 0, ""),
        ("td run none.mp4 --model net:build 2> /dev/full", 1, ""),
        ("td --help > /dev/full 2>&1", 1, ""),
        ("td --help >&-", 0, ""),
        ("td --version 2>&-", 0, ""),
        ("td --version <&-", 0, ""),
        ("td --version <&- >&- 2>&-", 0, ""),
        ("td nope 2>&-", 2, ""),
        (f"{RUN} --json - >&-", 1, "error: standard output is closed"),
        # a pipe that is closed before anything is written
        ("{ sleep .1; td --help; } | true", BROKEN_PIPE, ""),
        ("{ sleep .1; td nope 2>&1; } | true", BROKEN_PIPE, ""),
    ):
        done = shell(line, folder)
        assert done.returncode == code, f"{line}: {done.stderr}"
        assert done.stderr.startswith(said), f"{line}: {done.stderr}"
        assert done.stderr.count("\n") <= 1, f"{line}: {done.stderr}"


def test_closed_streams_do_not_become_files(folder: Path) -> None:
    """Where standard output and error are closed, the next file must not take their places."""
    done = shell(f"{RUN} --json closed.jsonl <&- >&- 2>&-", folder)
    assert done.returncode == 0
    lines = (folder / "closed.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2]


@contextmanager
def started(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it does not outlive a test that fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torchdelta", *args],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("after_s", [0.3, 1.0, 2.5])
def test_interrupted_while_it_starts(after_s: float, folder: Path) -> None:
    source, model = str(next(folder.glob("日本*"))), ("--model", "timm:resnet50")
    with started(folder, "run", source, *model, "--size", "512x512", "--json", "late.jsonl") as run:
        time.sleep(after_s)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (INTERRUPTED, ""), err
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not (folder / "late.jsonl").exists()


def test_interrupted_demo_closes_its_video(folder: Path) -> None:
    video = folder / "out" / "demo.mp4"
    with started(folder, "demo", "--frames", "100000", "--size", "64x96") as demo:
        end_s = time.monotonic() + 100
        while time.monotonic() < end_s and not (video.exists() and video.stat().st_size > 20_000):
            time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (INTERRUPTED, "interrupted\n")
    # an ordinary file has its index in front
    assert b"moof" not in video.read_bytes()
