"""The command line at its ends: damage, errors, interruption; the other commands."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torchdelta
from cli_nets import call, clip, entered, images, pictures, records
from conftest import require
from support import LONG
from torchdelta import native_lib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path, monkeypatch):
        yield tmp_path


def test_damaged_video_keeps_what_came_before(folder: Path) -> None:
    path = folder / "a.mp4"
    source = clip(path, 30)
    whole = path.read_bytes()
    # the index is in front, so what is lost is pictures
    path.write_bytes(whole[: len(whole) * 2 // 3])
    result = call(
        "run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4", code=1
    )
    count = len(records())
    assert 1 <= count < 30
    assert len(pictures("out.mp4")) == count
    assert re.search(rf"a\.mp4: damaged at frame {count} \(\d+\.\d+ s\)", result.stderr)
    assert "a.mp4" in result.stdout


def test_damaged_image_does_not_stop_the_other_stream(folder: Path) -> None:
    a, b = images(folder / "a", 5), images(folder / "b", 5)
    (folder / "b" / "002.png").write_bytes(b"not a picture")
    result = call("run", a, b, "--model", "nets:segment", "--json", "out.jsonl", code=1)
    streams = [line["stream"] for line in records()]
    assert (streams.count("a"), streams.count("b")) == (5, 2)
    assert "002.png: frame 2 is damaged" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gone.mp4", "--model", "nets:segment"], "gone.mp4: no such file"),
        (["nets.py", "--model", "nets:segment"], "nets.py"),
        ([".", "--model", "nets:segment"], "holds no image"),
        (["a", "--model", "nets:segmant"], "close to it: segment"),
        (["a", "--model", "something"], "timm:NAME"),
        (["a", "--model", "nets:segment", "--weights", "none.pth"], "no such file"),
        (["a", "--model", "nets:segment", "--weights", "other.pth"], "4 keys unexpected"),
        (["a", "--model", "nets:segment", "--save", "out.txt"], "out.txt"),
    ],
)
def test_errors_are_one_message(args: list[str], said: str, folder: Path) -> None:
    images(folder / "a", 2)
    torch.save({f"x.{i}": torch.zeros(1) for i in range(4)}, "other.pth")
    result = call("run", *args, code=1)
    assert result.stderr.splitlines()[-1:] or result.stderr
    assert "error: " in result.stderr
    assert said in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["run", "a"],
        ["run", "--model", "nets:segment"],
        ["run", "a", "--model", "nets:segment", "--size", "480"],
        ["run", "a", "--model", "nets:segment", "--size", "0x4"],
        ["run", "a", "--model", "nets:segment", "--limit", "0"],
        ["run", "a", "--model", "nets:segment", "--tolerance", "-1"],
        ["run", "a", "--model", "nets:segment", "--tolerance", "nan"],
        ["run", "a", "--model", "nets:segment", "--task", "cook"],
        ["run", "a", "--model", "nets:segment", "--dtype", "int8"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(args: list[str]) -> None:
    call(*args, code=2)


def test_explain_names_every_step(folder: Path) -> None:
    text = call("explain", "nets:segment", "--size", "33x47").stdout
    assert "33x47" in text
    assert text.count("conv") >= 2
    assert "224x224" in call("explain", "nets:segment").stdout


def test_explain_compares_on_a_frame_that_is_not_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples: list[torch.Tensor] = []
    compile_ = torchdelta.compile

    def spy(model: Any, example: torch.Tensor, **options: Any) -> torchdelta.CompiledModel:
        examples.append(example)
        return compile_(model, example, **options)

    monkeypatch.setattr(torchdelta, "compile", spy)
    texts = [call("explain", "nets:segment", "--size", "33x47").stdout for _ in range(2)]
    assert texts[0] == texts[1]
    assert torch.equal(examples[0], examples[1])
    assert examples[0].float().std() > 50


def test_env_names_versions_devices_and_engines() -> None:
    text = call("env").stdout
    for word in ("torchdelta", torch.__version__.split("+")[0], "cpu", "cuda", "engines", "torch",
                 "instruction sets", "TORCHDELTA_CPU_ISA", "OpenMP"):  # fmt: skip
        assert word in text
    assert ("several OpenMP runtimes" in text) == (len(native_lib.openmp_runtimes()) > 1)


def test_env_says_why_the_cpu_engine_is_missing_and_what_fights_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native_lib.library.cache_clear()
    monkeypatch.setattr(native_lib, "library_path", lambda: None)
    monkeypatch.setattr(
        native_lib, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"]
    )
    monkeypatch.setenv("TORCHDELTA_CPU_ISA", "avx2")
    try:
        text = " ".join(call("env").stdout.split())
    finally:
        native_lib.library.cache_clear()
    for words in ("was not built", "compiler", "instruction sets │ none", "avx2",
                  "/b/libiomp5.so", "warning: several OpenMP runtimes"):  # fmt: skip
        assert words in text


def test_demo_runs(folder: Path) -> None:
    text = call("demo", "--frames", "3", "--size", "64x96").stdout
    assert "MAC" in text
    assert len(pictures("out/demo.mp4")) == 3


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from torchdelta.cli import main; main()", *args]


def test_help_imports_no_model_collection() -> None:
    code = (
        "import sys\nfrom torchdelta.cli.app import app\n"
        "assert not {'timm', 'torchvision', 'av'} & set(sys.modules)\n"
        "sys.argv = ['torchdelta', 'run', '--help']\napp()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("SOURCE", "--model", "--weights", "--task", "--compare", "Examples"):
        assert word in done.stdout
    version = subprocess.run(command("--version"), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"torchdelta \d+\.\d+\.\d+\S*\n", version.stdout)


# (a killed run's video and lines: tests/test_sink.py)
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), *([(signal.SIGTERM, 143), (signal.SIGKILL, -9)] if LONG else [])],
)
def test_interrupted_run_leaves_whole_files(number: int, code: int, folder: Path) -> None:
    source = clip(folder / "a.mp4", 3000, 32, 48)
    args = ["run", source, "--model", "nets:segment", "--json", "out.jsonl", "--save", "out.mp4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if Path("out.jsonl").read_text().count("\n") >= 8:
                    break
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    lines, shown = records(), pictures("out.mp4")
    assert 8 <= len(lines) < 3000
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        # the frame under way may have its line and not yet its picture
        assert len(lines) - 2 <= len(shown) <= len(lines)
    else:
        assert len(shown) == len(lines)
        assert "interrupted; so far:" in out


def test_classifies_the_room_with_real_weights(data: Path) -> None:
    require("timm")
    call(
        "run", str(data / "clips/static/room_768x432.mp4"),
        "--model", "timm:tf_efficientnet_lite0",
        "--weights", str(data / "weights/tf_efficientnet_lite0_imagenet_fp16.pth"),
        "--task", "classify", "--compare", "--limit", "4", "--json", "out.jsonl",
    )  # fmt: skip
    lines = records()
    assert len(lines) == 4
    assert lines[0]["mac_share"] == 1.0
    assert max(line["mac_share"] for line in lines[1:]) < 0.5
    assert max(line["layer_error"] for line in lines) < 0.1
    assert all(isinstance(line["result"]["label"], str) for line in lines)


def test_denoises_the_street_with_real_weights(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    call(
        "run", str(data / "clips/static/pedestrians_768x576.avi"),
        "--model", "examples.denoise:dncnn",
        "--weights", str(data / "weights/dncnn17_gray_sigma25.pth"),
        "--task", "image", "--compare", "--size", "96x128", "--limit", "4",
        "--json", str(folder / "out.jsonl"), "--save", str(folder / "out.mp4"),
    )  # fmt: skip
    lines = records(str(folder / "out.jsonl"))
    assert len(lines) == len(pictures(folder / "out.mp4")) == 4
    assert lines[0]["mac_share"] == 1.0
    assert all(0 < line["mac_share"] < 1 for line in lines[1:])
    assert all(math.isfinite(line["error"]) for line in lines)
    assert max(line["layer_error"] for line in lines) < 0.05
    assert all(0.1 < line["result"]["mean"] < 0.9 for line in lines)
