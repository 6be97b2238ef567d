"""`torchdelta bench` as a command."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import torchdelta
from bench_nets import H, W, entered, needs_cuda
from conftest import require
from documents import rows, section
from support import ENGINE_CASES, ENGINE_NAMES, computes_in
from torchdelta import native_lib
from torchdelta.bench import peers as peers_module
from torchdelta.bench.forced import disc_mask
from torchdelta.bench.peers import PEERS, Eager, Peer, Workload
from torchdelta.bench.quality import Reference
from torchdelta.bench.report import write_json
from torchdelta.cli.app import app
from torchdelta.errors import SinkError

KEYS = {
    "model", "source", "streams", "engine", "dtype", "tolerance", "frames", "ours_ms", "peers_ms",
    "best_peer", "speedup", "mac_share", "changed_input", "efficiency", "quality", "state_bytes",
    "device", "threads", "versions", "commit",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path, monkeypatch):
        yield tmp_path


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["bench", *args])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def test_a_clip_gives_figures_that_agree_with_each_other(folder: Path) -> None:
    for module in ("onnxruntime", "openvino"):
        require(module)
    result = call(
        "--model", "nets:classify", "--source", "clip", "--tolerance", "0.02",
        "--peers", "torch,onnxruntime,openvino", "--steps", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert set(record["peers"]) == {"torch", "onnxruntime", "openvino"} == set(record["peers_ms"])
    assert record["speedup"] == pytest.approx(min(record["peers_ms"].values()) / record["ours_ms"])
    assert record["peers_ms"][record["best_peer"]] == min(record["peers_ms"].values())
    assert record["efficiency"] == pytest.approx(record["mac_share"] * record["speedup"])
    assert record["efficiency_median"] == pytest.approx(
        record["mac_share_median"] * record["speedup_median"]
    )
    assert record["ours"]["p20"] <= record["ours"]["median"] <= record["ours"]["p80"]
    assert 0 < record["changed_input"] < record["mac_share"] < 1
    assert (record["frames"], record["sampled_frames"], record["quality"]["frames"]) == (9, 8, 8)
    assert (record["source"], record["active"], record["size"]) == ("clip", None, [H, W])
    assert (record["tolerance"], record["dtype"], record["threads"]) == (0.02, "fp32", 1)
    assert record["quality"]["classes"] is None
    assert record["quality"]["layer_error"]["mean"] < 0.1
    assert record["prepared"]
    assert any("random" in note for note in record["notes"])
    assert record["state_bytes"] > 8 * H * W * 4
    assert record["peak_rss_bytes"] > 10 * record["state_bytes"]
    assert {"torchdelta", "torch", "onnxruntime", "openvino"} <= set(record["versions"])
    assert record["commit"]
    spent_ms = [step["ms"] for step in record["steps"]]
    assert spent_ms == sorted(spent_ms, reverse=True)
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["contestant"][1:] == ["median", "20%", "80%", "mean"]
    for name, ms in (("torchdelta", record["ours"]), *record["peers"].items()):
        cells = [float(cell) for cell in lines[name][-4:]]
        assert cells == pytest.approx(
            [ms["median"], ms["p20"], ms["p80"], ms["mean"]], rel=1e-2, abs=6e-3
        )
    for word in ("speedup", "MAC share", "efficiency", "quality", "relative L2", "conditions",
                 "decoding", "slowest steps", "note: weights: random"):  # fmt: skip
        assert word in result.stdout
    assert "wrote out.json" in result.stdout
    assert sorted(p.name for p in folder.iterdir() if "json" in p.name) == ["out.json"]


def test_forced_activity_needs_no_clip(folder: Path) -> None:
    result = call(
        "--model", "nets:picture", "--active", "0.1", "--size", "96x144", "--frames", "5",
        "--streams", "2", "--peers", "torch", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert 0.1 <= record["mac_share"] < 0.12
    assert record["mac_share"] == pytest.approx(disc_mask((96, 144), 0.1).mean(), rel=1e-5)
    assert 0.1 < record["changed_input"] < 0.2
    assert record["source"] is record["quality"] is record["steps"] is None
    best = "cpu" if "cpu" in ENGINE_NAMES else "torch"
    assert record["engine"] == best
    assert record["isa"] == (native_lib.choose_isa() if best == "cpu" else None)
    assert record["engine_reason"].startswith("auto: ")
    assert f"engine      {best} (auto: " in result.stdout
    assert (record["active"], record["streams"], record["sampled_frames"]) == (0.1, 2, 4)
    assert record["ours_ms"] == record["ours"]["median"]
    assert record["efficiency"] == pytest.approx(record["mac_share"] * record["speedup"])
    assert "10.0% of every map forced active" in result.stdout
    assert "not measured: forced active sets" in result.stdout


@needs_cuda
def test_the_triton_engine_against_all_peers_on_cuda(folder: Path) -> None:
    result = call(
        "--model", "nets:picture", "--source", "clip", "--engine", "triton", "--dtype", "fp16",
        "--tolerance", "0.02", "--streams", "2", "--steps", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert set(record) >= KEYS
    assert (record["engine"], record["dtype"], record["streams"]) == ("triton", "fp16", 2)
    assert set(record["peers"]) == {"torch", "cudagraph", "compile"} == set(record["peers_ms"])
    assert record["reference_speedup"] == pytest.approx(record["reference_ms"] / record["ours_ms"])
    assert record["speedup"] == pytest.approx(min(record["peers_ms"].values()) / record["ours_ms"])
    assert 0 < record["changed_input"] < record["mac_share"] < 1
    assert record["quality"]["layer_error"]["mean"] < 0.1
    assert record["device"] == torch.cuda.get_device_name()
    assert {"cuda", "cudnn", "triton"} <= set(record["versions"])
    assert all(step["ms"] > 0 for step in record["steps"])
    assert not [note for note in record["notes"] if "left out" in note]
    assert "cudnn-fp32 (reference)" in result.stdout


def test_an_unchanged_frame(folder: Path) -> None:
    result = call(
        "--model", "nets:classify", "--active", "0", "--size", "48x64", "--frames", "4",
        "--peers", "torch", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    # nothing is forced, and the gates find nothing, the vector behind the pool included
    assert (record["active"], record["mac_share"], record["changed_input"]) == (0, 0, 0)
    assert record["efficiency"] is None
    assert record["speedup"] > 0
    assert "the same frame again and again" in result.stdout
    assert "efficiency" not in result.stdout


def test_a_record_says_why_it_is_of_the_torch_engine(folder: Path) -> None:
    args = ["--model", "nets:picture", "--active", "0.1", "--size", "24x32", "--frames", "3",
            "--peers", "none", "--json", "out.json", "--dtype", "fp16"]  # fmt: skip
    result = call(*args)
    record = json.loads(Path("out.json").read_text())
    assert (record["engine"], record["isa"], record["dtype"]) == ("torch", None, "fp16")
    if "cpu" in ENGINE_NAMES:
        assert "not cpu: the cpu engine computes in fp32 and bf16" in record["engine_reason"]
    note = f"ours ran on the torch engine: {record['engine_reason']}"
    assert note in record["notes"]
    assert f"note: {note}" in result.stdout
    # as asked: no fallback
    call(*args, "--engine", "torch")
    record = json.loads(Path("out.json").read_text())
    assert record["engine_reason"] == "as asked"
    assert not any("ours ran on" in note for note in record["notes"])


@pytest.mark.skipif(
    not any(computes_in(case, torch.bfloat16) for case in ENGINE_CASES if "cpu" in case),
    reason="this CPU has no AVX512-BF16",
)
def test_bf16_on_the_cpu_engine(folder: Path) -> None:
    call("--model", "nets:picture", "--source", "clip", "--frames", "4", "--dtype", "bf16",
         "--peers", "torch", "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert (record["engine"], record["isa"], record["dtype"]) == ("cpu", "avx512_bf16", "bf16")
    assert 1e-3 < record["quality"]["layer_error"]["mean"] < 0.1
    assert list(record["peers"]) == ["torch"]


def test_weights_and_a_profile_from_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    model = importlib.import_module("nets").picture()
    torch.save(model.state_dict(), "w.pth")
    # the same goes in, and nothing comes out of the gates behind it
    torchdelta.Profile({"*": 1e6, "input": 1.0}).save("loose.json")
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "4", "--peers", "none",
            "--weights", "w.pth", "--json", "out.json"]  # fmt: skip
    records = []
    for more in ([], ["--profile", "loose.json"]):
        call(*args, *more)
        records.append(json.loads(Path("out.json").read_text()))
    plain, loose = records
    for record in records:
        assert not record["prepared"]
        assert not any("random" in note for note in record["notes"])
    assert loose["changed_input"] == plain["changed_input"] > 0
    assert loose["mac_share"] < 0.7 * plain["mac_share"]


def test_tf32_is_refused_where_no_engine_has_it(folder: Path) -> None:
    args = ["--model", "nets:picture", "--source", "clip", "--dtype", "tf32"]
    result = call(*args, "--engine", "torch", code=1)
    assert "it has no tf32, which the triton engine has" in result.stderr


def test_a_reference_has_a_line_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Eager):
        name = "cudnn-fp32"
        reference = True

    monkeypatch.setitem(peers_module.PEERS, "cpu", (Eager, Slow))
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "3", "--json", "out.json"]
    result = call(*args, "--dtype", "bf16", "--engine", "torch")
    record = json.loads(Path("out.json").read_text())
    assert list(record["peers"]) == ["torch"]
    assert record["reference_speedup"] == pytest.approx(record["reference_ms"] / record["ours_ms"])
    assert "cudnn-fp32 (reference)" in result.stdout
    assert "cuDNN in float32 without TF32" in result.stdout
    call(*args)
    assert json.loads(Path("out.json").read_text())["reference"] is None


def test_grey_pictures_in_two_streams(folder: Path) -> None:
    call(
        "--model", "nets:denoise", "--source", "clip", "--streams", "2", "--frames", "4",
        "--size", "24x32", "--peers", "none", "--json", "out.json",
    )  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert record["quality"]["psnr_db"]["mean"] > 20
    assert record["quality"]["psnr_peak"] == "range of the input"
    assert record["speedup"] is None
    assert record["peers_ms"] == {}
    assert (record["frames"], record["streams"], record["size"]) == (4, 2, [24, 32])


def test_the_whole_session_is_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours cannot hide work outside what is timed: a step that sleeps shows."""
    slow_ms, step = 30.0, torchdelta.Session.step

    def slow(*args: Any, **options: Any) -> Any:
        import time

        time.sleep(slow_ms / 1e3)
        return step(*args, **options)

    monkeypatch.setattr(torchdelta.Session, "step", slow)
    call("--model", "nets:picture", "--source", "clip", "--frames", "4", "--peers", "none",
         "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    assert slow_ms < record["ours"]["p20"]
    assert slow_ms < record["first_ms"]
    assert record["decode_ms"] < slow_ms


def test_no_figures_of_a_wrong_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "dense", lambda self, x: torch.ones(len(x), 3, H, W))
    result = call("--model", "nets:picture", "--source", "clip", "--peers", "none",
                  "--json", "out.json", code=1)  # fmt: skip
    assert "is not the dense network's: relative L2 error" in result.stderr
    assert not Path("out.json").exists()


def test_default_peers_that_cannot_run_are_notes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Peer, work: Workload) -> None:
        raise RuntimeError("no such luck\nwith a long story")

    monkeypatch.setitem(peers_module.PEERS, "cpu", PEERS["cpu"][:2])
    monkeypatch.setattr(PEERS["cpu"][1], "__init__", refuse)
    args = ["--model", "nets:picture", "--source", "clip", "--frames", "3", "--json", "out.json"]
    call(*args)
    record = json.loads(Path("out.json").read_text())
    assert list(record["peers"]) == ["torch"]
    assert "compile left out: RuntimeError: no such luck" in record["notes"]
    result = call(*args, "--peers", "compile,torch", code=1)
    assert "compile cannot run: RuntimeError: no such luck" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--source", "clip", "--active", "0.1"], 2, "one of --source CLIP and --active SHARE"),
        ([], 2, "one of --source CLIP and --active SHARE"),
        (["--active", "-0.1"], 2, "is no share"),
        (["--active", "1.5"], 2, "is no share"),
        (["--active", "nan"], 2, "is no share"),
        (["--active", "0.1"], 1, "does not say what size it is for; give --size HxW"),
        (["--source", "0"], 1, "camera 0 cannot be played twice"),
        (["--source", "none.mp4"], 1, "no such file"),
        (["--source", "clip", "--peers", "caffe"], 1, "known are torch"),
        (["--source", "clip", "--json", "none/out.json"], 1, "there is no folder"),
        (["--source", "clip", "--json", "clip"], 1, "would overwrite the source"),
        (["--source", "clip", "--json", "clip/1.png"], 1, "would overwrite the source"),
        (["--source", "clip", "--frames", "1"], 2, "frames"),
        (["--source", "clip", "--streams", "0"], 2, "streams"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_come_before_the_work(
    args: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("this is the work")

    monkeypatch.setattr(torchdelta, "compile", refuse)
    result = call("--model", "nets:picture", *args, code=code)
    said = " ".join(result.stderr.replace("│", " ").split())
    assert message in said


def test_json_is_written_whole_or_not_at_all(folder: Path) -> None:
    path = Path("out.json")
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"a": 1.0, "b": object()})
    assert path.read_text() == "old"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5]}
    with pytest.raises(SinkError, match="cannot be written"):
        write_json(Path("none/out.json"), {})
    assert sorted(p.name for p in folder.iterdir()) == ["clip", "nets.py", "out.json"]


def test_every_key_is_in_the_documents(folder: Path) -> None:
    call("--model", "nets:picture", "--source", "clip", "--frames", "3", "--peers", "none",
         "--json", "out.json")  # fmt: skip
    record = json.loads(Path("out.json").read_text())
    _, table = section("docs/usage.md", "torchdelta bench").split("**--json**")
    named = [word.strip("`") for row in rows(table) for word in row[0].split(", ")]
    assert sorted(named) == sorted(record)


def test_every_peer_is_in_the_documents() -> None:
    table, _ = section("docs/usage.md", "torchdelta bench").split("**--json**")
    named = {row[0].strip("`") for row in rows(table)}
    assert named == {peer.name for kinds in PEERS.values() for peer in kinds}
