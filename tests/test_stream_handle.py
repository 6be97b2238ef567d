"""A stream as its user holds it: `session.stream(name)`, and figures as JSON."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import nn

import torchdelta
from support import ENGINE_NAMES
from torchdelta import FrameError, Session, StreamError

H, W = 24, 32


@pytest.fixture(scope="module", params=ENGINE_NAMES)
def fast(request: pytest.FixtureRequest) -> torchdelta.CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1)).eval()
    return torchdelta.compile(
        model, torch.rand(1, 3, H, W), tolerance=0.0, input_range=(0, 1), engine=request.param
    )


def frame(seed: int) -> torch.Tensor:
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(seed))


def test_a_handle_gives_what_a_turn_of_its_stream_gives(fast: torchdelta.CompiledModel) -> None:
    alone, together = fast.session(slots=2), fast.session(slots=2)
    gate, yard = alone.stream("gate"), alone.stream("yard")
    assert alone.streams == []
    region = torch.zeros(H, W, dtype=torch.bool)
    region[4:12, 8:20] = True
    for n in range(4):
        options = {"roi": region, "record": True} if n == 2 else {}
        mine = [gate(frame(n), **options), yard(frame(10 + n))]
        kept = {"roi": {"gate": region}, "record": True} if n == 2 else {}
        theirs = together.step({"gate": frame(n), "yard": frame(10 + n)}, **kept)
        for result, expected in zip(mine, theirs.values(), strict=True):
            assert result.ok
            assert result.stream == expected.stream
            assert torch.equal(result.output, expected.output)
        assert (mine[0].active is not None) == (n == 2)
    assert alone.streams == ["gate", "yard"]
    assert gate.stats.frames == alone.stream("gate").stats.frames == 4
    assert alone.stats.frames == 8


def test_homographies_come_with_the_frame() -> None:
    model = nn.Conv2d(3, 4, 3, 1, 1).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, H, W), input_range=(0, 1), engine="torch")
    cam = fast.session(motion="given").stream("drone")
    cam(frame(0))
    result = cam(frame(0).roll(2, 2), homography=[[1, 0, -2], [0, 1, 0], [0, 0, 1]])
    assert result.aligned is not None
    assert result.aligned.anchored is None
    assert cam(frame(1), homography=None).aligned.anchored is not None
    still = fast.session().stream("gate")
    with pytest.raises(ValueError, match='homographies are for motion="given"'):
        still(frame(0), homography=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_a_refused_frame_is_told_and_leaves_the_stream_as_it_was(
    fast: torchdelta.CompiledModel,
) -> None:
    cam = fast.session().stream("gate")
    first = cam(frame(0))
    refused = cam(frame(0)[:, 1:])
    assert first.ok
    assert not refused.ok
    assert isinstance(refused.error, FrameError)
    assert "frame is 23x32" in str(refused.error)
    assert cam(frame(0)).stats.changed_input == 0
    assert cam.stats.frames == 2


def test_what_a_stream_is_asked_reaches_this_stream_alone(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=2)
    gate, yard = session.stream("gate"), session.stream("yard")
    session.step({"gate": frame(0), "yard": frame(0)})
    gate.refresh(reason="lamps on")
    yard.set_tolerance(0.5)
    results = session.step({"gate": frame(0), "yard": frame(0)})
    assert results["gate"].stats.reason == "lamps on"
    assert results["yard"].stats.reason is None
    session.step({"gate": frame(1), "yard": frame(1)})
    assert gate.audit().values[0].threshold == 0 < yard.audit().values[0].threshold
    assert torch.allclose(gate.published()[0].cpu(), frame(1))
    assert gate.profile().rms
    gate.reset()
    assert gate.stats.frames == 0
    assert yard.stats.frames == 3
    session.refresh(reason="both")
    results = session.step({"gate": frame(1), "yard": frame(1)})
    assert [r.stats.reason for r in results.values()] == ["reset", "both"]
    gate.leave()
    assert session.streams == ["yard"]
    with pytest.raises(StreamError, match="'gate' is unknown"):
        gate.stats  # noqa: B018
    gate(frame(2))
    assert gate.stats.reasons == {"first frame": 1}


def test_handles_share_the_slots(fast: torchdelta.CompiledModel) -> None:
    session = fast.session(slots=1)
    gate, yard = session.stream("gate"), session.stream("yard")
    assert gate.join() == 0
    with pytest.raises(StreamError, match="joined already"):
        session.stream("gate").join()
    with pytest.raises(StreamError, match="no free slot for 'yard'"):
        yard(frame(0))
    with pytest.raises(StreamError, match="had no frame yet"):
        gate.audit()
    with pytest.raises(StreamError, match="a stream's name is a str, got 3"):
        session.stream(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stands for a stream of a session"):
        pickle.dumps(gate)


def test_figures_as_json(fast: torchdelta.CompiledModel) -> None:
    session = fast.session()
    cam = session.stream("gate")
    for n in (0, 1, 1):
        cam(frame(n))
    figures = json.loads(json.dumps(cam.stats.to_dict()))
    assert figures["frames"] == 3
    assert figures["reasons"] == {"first frame": 1}
    assert figures["mac_share"] == pytest.approx(0.5)
    assert figures["last"]["frame"] == 2
    assert figures["last"]["changed_input"] == 0
    assert figures == session.stats.to_dict()
    empty = json.loads(json.dumps(fast.session().stats.to_dict()))
    assert empty["frames"] == 0
    assert empty["ms"] is None
    assert empty["last"] is None


@pytest.mark.parametrize(
    "old",
    ["join", "leave", "reset", "set_tolerance", "set_motion", "published", "audit", "profile"],
)
def test_there_is_one_way_to_ask_a_stream(old: str) -> None:
    assert not hasattr(Session, old)
    assert hasattr(torchdelta.StreamHandle, old)
