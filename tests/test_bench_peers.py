"""The peers of `torchdelta bench`: what they compute, which are left out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from bench_nets import CPU, H, W, entered, needs_cuda, network, workload
from conftest import require
from torchdelta.bench.peers import PEERS, Eager, Peer, Workload, make_peers, parse_peers
from torchdelta.bench.quality import difference
from torchdelta.errors import EngineError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path, monkeypatch):
        yield tmp_path


def available(name: str) -> type[Peer]:
    (kind,) = [peer for peer in PEERS["cpu"] if peer.name == name]
    for package in kind.packages:
        require(package)
    if name == "compile" and not shutil.which(os.environ.get("CXX") or "g++"):
        pytest.skip("no C++ compiler for torch.compile")
    return kind


@pytest.mark.parametrize("name", [peer.name for peer in PEERS["cpu"]])
def test_peers_compute_the_dense_network(name: str) -> None:
    work = workload(network(), n=2)
    ready, left_out = make_peers(
        [available(name)], work, lambda _: None, asked=True, say=lambda _: None
    )
    assert not left_out
    x = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = work.model(x)
    for _ in range(2):
        out = ready[0].outputs(ready[0].run(ready[0].load(x)))
        assert torchdelta.relative_error(out, [expected]) < 1e-4
    assert ready[0].version()


@needs_cuda
@pytest.mark.parametrize("name", [peer.name for peer in PEERS["cuda"]])
def test_peers_on_cuda_compute_the_dense_network(name: str) -> None:
    """A frame's result is not the last one's: graphs read what `load` brought them."""
    (kind,) = [peer for peer in PEERS["cuda"] if peer.name == name]
    device = torch.device("cuda", torch.cuda.current_device())
    example = torch.rand(2, 3, H, W, device=device)
    work = Workload(network().to(device), example, torch.float16, 1)
    ready, left_out = make_peers([kind], work, lambda _: None, asked=True, say=lambda _: None)
    assert not left_out
    (peer,) = ready
    for seed in (2, 3):
        x = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(seed)).to(device)
        with torch.no_grad():
            expected = network().double().to(device)(x.double())
        (out,) = peer.outputs(peer.run(peer.load(x)))
        assert out.dtype == (torch.float32 if peer.reference else torch.float16)
        # TF32 would be off by some 3e-4
        limit = 1e-5 if peer.reference else 5e-3
        assert torchdelta.relative_error(out, expected) < limit


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_exported_results_keep_their_order(name: str, folder: Path) -> None:
    sys.path.insert(0, str(folder))
    try:
        from nets import Parts
    finally:
        sys.path.remove(str(folder))
    work = workload(Parts().eval())
    peer = available(name)(work)
    out = peer.outputs(peer.run(peer.load(work.example)))
    with torch.no_grad():
        assert difference(out, work.model(work.example), 1e-4) is None


def test_bf16_peers() -> None:
    work = workload(network(), dtype=torch.bfloat16)
    for kind in (Eager, available("openvino")):
        peer = kind(work)
        out = peer.outputs(peer.run(peer.load(work.example)))
        with torch.no_grad():
            assert difference(out, work.model(work.example), 3e-2) is None
    reason = available("onnxruntime").unavailable(torch.bfloat16)
    assert reason == "it has no bfloat16 on this device"


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise RuntimeError("not for export\nat all")
        return self.conv(x)


def test_a_peer_that_cannot_run_is_left_out_with_the_reason() -> None:
    class Wrong(Eager):
        name = "wrong"

    class Missing(Eager):
        name = "missing"
        packages = ("no_such_package",)

    work = workload(Unexportable().eval())
    kinds = [Missing, available("onnxruntime"), Eager, Wrong]
    wrong = iter([None, "all is wrong"])
    ready, notes = make_peers(kinds, work, lambda _: next(wrong), asked=False, say=lambda _: None)
    assert [peer.name for peer in ready] == ["torch"]
    assert notes[0].startswith("missing left out: no_such_package is not installed (pip install")
    assert "onnxruntime left out: the model cannot be exported to ONNX" in notes[1]
    assert "not for export" in notes[1]
    assert notes[2] == "wrong left out: its result differs from the dense network's: all is wrong"
    with pytest.raises(EngineError, match="missing cannot run: no_such_package"):
        make_peers([Missing], work, lambda _: None, asked=True, say=lambda _: None)


def test_lists_of_peers() -> None:
    kinds, asked = parse_peers(None, CPU)
    assert [k.name for k in kinds] == ["torch", "compile", "onnxruntime", "openvino"]
    assert not asked
    kinds, asked = parse_peers("openvino, torch,openvino", CPU)
    assert [k.name for k in kinds] == ["openvino", "torch"]
    assert asked
    assert parse_peers("none", CPU)[0] == []
    cuda = torch.device("cuda")
    names = ["torch", "cudagraph", "compile", "cudnn-fp32"]
    assert [k.name for k in parse_peers(None, cuda)[0]] == names
    # the other peers are float32 themselves then
    assert [k.name for k in parse_peers(None, cuda, float32=True)[0]] == names[:3]
    assert [k.name for k in parse_peers("cudnn-fp32", cuda, float32=True)[0]] == names[3:]
    for text in ("tensorflow", "torch,tensorflow", ""):
        with pytest.raises(EngineError, match="known are torch, compile, onnxruntime, openvino"):
            parse_peers(text, CPU)
