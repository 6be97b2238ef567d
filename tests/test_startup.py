"""What starts without PyTorch, and that the public names are there when they are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import torchdelta

HEAVY = ("torch", "cv2", "av", "timm", "torchvision", "triton")

# Runs the command line on one list of arguments after the other, in children of one process that
# has imported nothing heavy; prints exit code, what was said, and what heavy modules came in.
MANY = (
    f"HEAVY = {HEAVY}"
    + """
import json, os, sys
import torchdelta.cli.app
for args in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1), os.dup2(writing, 2)
        sys.argv = ["torchdelta", *args]
        code = 0
        try:
            torchdelta.cli.main()
        except SystemExit as end:
            code = end.code or 0
        heavy = [name for name in HEAVY if name in sys.modules]
        print("\\n" + json.dumps([code, heavy]), flush=True)
        os._exit(0)
    os.close(writing)
    said, _, told = open(reading).read().rstrip().rpartition("\\n")
    os.wait()
    print(json.dumps([*json.loads(told), said]))
"""
)


def outcomes(folder: Path, cases: list[list[str]]) -> list[list[Any]]:
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(cases)],
        cwd=folder, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "w.pth").write_bytes(b"")
    run = ["run", "a.mp4", "--model", "timm:resnet50"]
    cases = [
        (["--help"], 0, "Usage: torchdelta"),
        *(([name, "--help"], 0, f"Usage: torchdelta {name}")
          for name in ("run", "bench", "explain", "demo", "env")),
        (["--version"], 0, "torchdelta 0."),
        ([], 2, "Usage"),
        (["nope"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
        (["run", "a.mp4"], 2, "Missing option"),
        ([*run, "--size", "big"], 2, "is no size"),
        ([*run, "--engine", "abacus"], 2, "abacus"),
        ([*run, "--tolerance", "inf"], 2, "no finite number"),
        ([*run, "--limit", "0"], 2, "limit"),
        (["bench", "--model", "timm:resnet50"], 2, "one of --source"),
        (["run", "b.mp4", "--model", "timm:resnet50"], 1, "b.mp4: no such file"),
        (["bench", "--source", "b.mp4", "--model", "timm:resnet50"], 1, "b.mp4: no such file"),
        ([*run, "--weights", "none.pth"], 1, "weights none.pth: no such file"),
        ([*run, "--profile", "none.json"], 1, "cannot read the profile none.json"),
        ([*run, "--profile", "broken.json"], 1, "cannot read the profile broken.json"),
        ([*run, "--json", "a.mp4"], 1, "would overwrite the source"),
        ([*run, "--save", "out.avi"], 1, "a video's name ends in"),
        (["run", "a.mp4", "--model", "none.pt2"], 1, "none.pt2: no such file"),
        (["run", "a.mp4", "--model", "w.pth"], 1, "goes to --weights"),
        (["run", "a.mp4", "--model", "no/model"], 1, "a model is named by"),
        (["run", "a.mp4", "--model", "nosuch.pkg:net"], 1, "no module 'nosuch'"),
        (["explain", "none.pt2"], 1, "none.pt2: no such file"),
        (["explain", "timm:resnet50", "--weights", "none.pth"], 1, "none.pth: no such file"),
    ]  # fmt: skip
    found = outcomes(tmp_path, [args for args, _, _ in cases])
    for (args, code, said), (got, heavy, text) in zip(cases, found, strict=True):
        assert (got, heavy) == (code, []), f"{args}: {text}"
        assert said in " ".join(text.split()), f"{args}: {text}"
        assert "Traceback" not in text


def test_public_names_come_when_asked_for() -> None:
    for name in torchdelta.__all__:
        assert getattr(torchdelta, name).__name__ == name
    assert set(torchdelta.__all__) <= set(dir(torchdelta))
    names: dict[str, object] = {}
    exec("from torchdelta import *", names)
    assert set(torchdelta.__all__) <= set(names)
    with pytest.raises(AttributeError, match="'torchdelta' has no attribute 'nope'"):
        # mypy sees it as well
        _ = torchdelta.nope  # type: ignore[attr-defined]


def test_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torchdelta", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == f"torchdelta {torchdelta.__version__}\n"
