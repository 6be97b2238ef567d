"""On a GPU: networks, operations, streams and lists equal the dense network and each other.

Skipped where PyTorch finds no GPU; `make test-gpu` makes a missing one a failure.
"""

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from chain_nets import NETS, SHAPE, compiled_chain, conv
from gpu_runs import CUDA, DTYPES, ENGINES_HERE, each_dtype, needs_triton
from networks import build
from streams import dense, history, play
from support import assert_active, move, new_session, same_bits, snapshot, wrote_only
from torchdelta.engines import ENGINES
from torchdelta.engines.torch_engine import ieee_float32
from torchdelta.runtime.inspect import buffers_of, frame_state
from torchdelta.runtime.measure import forced_step
from torchdelta.runtime.session import Session

pytestmark = pytest.mark.gpu

# relative L2 against dense fp32 without TF32; half precision: each of 20 to 50 layers rounds
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
# the same for networks of a few layers
SMALL_LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", LIMITS, ids=DTYPES)
@pytest.mark.parametrize("engine", ENGINES_HERE)
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "torchvision:mobilenet_v3_small",
                                  "timm:hrnet_w18_small"])  # fmt: skip
def test_networks_on_the_gpu_equal_dense(spec: str, engine: str, dtype: torch.dtype) -> None:
    size = (64, 96) if spec.startswith("timm") else (65, 97)
    with ieee_float32(CUDA):
        model = build(spec, size).cuda()
        generator = torch.Generator().manual_seed(2)
        x = torch.rand(1, 3, *size, generator=generator)
        fast = torchdelta.compile(
            model, x.cuda(), tolerance=0, input_range=(0, 1), dtype=dtype, engine=engine
        )
        assert fast.device.type == "cuda"
        assert not fast.session().engine.foreign_steps()
        last = None
        for kind in ("first", "patch", "patch", "stripes", "patch", "all", "pixel"):
            x = move(x, kind, generator)
            out = fast(x.cuda())
            assert out.is_cuda
            expected = dense(model, x.cuda())
            assert torchdelta.relative_error(out, expected) <= LIMITS[dtype], kind
            if last is not None and kind != "pixel":
                assert torchdelta.relative_error(last, expected) > 1e-2
            last = expected


@needs_triton
def test_tf32_is_an_option() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 64, 3), nn.ReLU(), conv(64, 64, 3)).eval()
    x = torch.rand(1, 3, 40, 50)
    plan = torchdelta.compile(model, x, input_range=(0, 1)).plan
    engine = ENGINES["triton"](plan, torch.device("cuda", 0), torch.float32, tf32=True)
    session = Session(engine, 1, 0.0, torchdelta.Profile())
    for _ in range(3):
        out = session.step({"s": x})["s"].output
        assert 1e-6 < torchdelta.relative_error(out, dense(model, x)) < 2e-3
        x = 1 - x


@needs_triton
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_active_sets(net: str, tolerance: float) -> None:
    """They are what the gates published, in eager frames and in replayed ones (P3)."""
    fast, model = compiled_chain(net)
    session = new_session(fast, "triton", tolerance)
    for x in history(("pixel", "patch", "noise", "same", "corner", "all", "pixel"), 1):
        before = snapshot(session)
        result = session.step({"s": x.cuda()}, record=True)["s"]
        assert_active(session, before, result, 0)
        assert wrote_only(session, before, {0: result})
        audit = session.stream("s").audit()
        assert audit.ok, str(audit)
        if not tolerance:
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


@needs_triton
@pytest.mark.parametrize("net", ["downsampling", "cat-of-six"])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_forced_sets(net: str, some: bool) -> None:
    fast, model = compiled_chain(net)
    plan = fast.plan
    generator = torch.Generator().manual_seed(3)
    masks: dict[tuple[int, int], Tensor] = {}
    for step in plan.steps:
        size = plan.values[step.output].size
        masks.setdefault(size, (torch.rand(size, generator=generator) < 0.2).cuda())
    steps = range(1, len(plan.steps), 2) if some else range(len(plan.steps))
    forced = {i: masks[plan.values[plan.steps[i].output].size] for i in steps}
    session = new_session(fast, "triton", 0.0)
    frames = history(("same", "patch", "all", "pixel", "patch"), 4)
    for t, x in enumerate(frames):
        given = forced if t in (1, 2, 3) else None
        if t == 4:
            # what forced sets left out
            session.refresh()
        before = snapshot(session)
        result = forced_step(session, {"s": x.cuda()}, given, record=True)["s"]
        for i, mask in (given or {}).items():
            assert torch.equal(result.active[plan.steps[i].name], mask), t
        counts = [int(mask.sum()) for mask in result.active.values()]
        assert result.report().active_px == counts
        assert wrote_only(session, before, {0: result})
        if t in (0, 4, 5):
            assert_active(session, before, result, 0)
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5


@needs_triton
@each_dtype
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("net", NETS)
def test_streams_at_tolerance_0(net: str, device: str, dtype: torch.dtype) -> None:
    """Joins, leaves, resets, refreshes, uneven arrival: as alone (P4), and dense (P1)."""
    fast, model = compiled_chain(net)

    def check(name: str, result: torchdelta.Result, x: Tensor) -> None:
        error = torchdelta.relative_error(result.output, dense(model, x))
        assert error <= SMALL_LIMITS[dtype], name

    play(fast, 0.0, check, dtype=dtype, device=device)


@needs_triton
@each_dtype
@pytest.mark.parametrize("net", ["bottleneck", "downsampling", "scales", "squeeze-excite"])
def test_streams_with_gates(net: str, dtype: torch.dtype) -> None:
    """As alone (P4), audited (P3), idle on the same frames (P5), and fresh after a refresh (P2)."""
    fast, _ = compiled_chain(net)
    session, last = play(fast, 0.08, lambda *_: None, dtype=dtype, device="cuda")
    for name in session.streams:
        audit = session.stream(name).audit()
        assert audit.ok, str(audit)
    frames = {name: last[name].cuda() for name in session.streams}
    before = snapshot(session)
    for result in session.step(frames, record=True).values():
        assert result.report().active_px == [0] * len(fast.plan.steps)
        assert result.stats.changed_input == result.stats.mac_share == 0.0
        assert not any(mask.any() for mask in result.active.values())
        assert not result.changed.any()
    assert all(same_bits(x, y).all() for x, y in zip(before, snapshot(session), strict=True))
    session.stream("c").refresh()
    assert session.step({"c": frames["c"]})["c"].stats.first
    fresh = new_session(fast, "triton", 0.08, profile=session.stream("c").profile(), dtype=dtype)
    fresh.step({"c": frames["c"]})
    for old, new in zip(buffers_of(session, "c"), buffers_of(fresh, "c"), strict=True):
        assert same_bits(old, new).all()


@needs_triton
@each_dtype
@pytest.mark.parametrize(("channels", "size", "slots"), [(64, (120, 160), 2), (256, (20, 30), 16),
                                                         (20, (90, 111), 6)])  # fmt: skip
def test_lists_of_any_length_give_the_same_bits(
    channels: int, size: tuple[int, int], slots: int, dtype: torch.dtype
) -> None:
    """Tiles and splits follow a list's length; the order of each sum does not (P1, P4)."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, channels, 3), nn.ReLU(), conv(channels, channels, 3)).eval()
    fast = torchdelta.compile(model, torch.rand(1, 3, *size), input_range=(0, 1))
    names = [str(n) for n in range(slots)]
    clips = {n: history(("pixel", "patch", "corner"), int(n), (3, *size)) for n in names}
    together, alone, whole = (
        new_session(fast, "triton", 0.0, slots=k, dtype=dtype) for k in (slots, 1, slots)
    )
    for t in range(4):
        results = together.step({n: clips[n][t].cuda() for n in names})
        out = alone.step({"0": clips["0"][t].cuda()})["0"].output
        assert torch.equal(results["0"].output, out), t
    results = whole.step({n: clips[n][-1].cuda() for n in names})
    for x, y in zip(frame_state(together).buffers, frame_state(whole).buffers, strict=True):
        assert same_bits(x, y).all()
    expected = dense(model, clips["0"][-1])
    assert torchdelta.relative_error(results["0"].output, expected) <= SMALL_LIMITS[dtype]


@needs_triton
def test_stamps_begin_anew() -> None:
    """More frames than a stamp has numbers: an unchanged frame stays idle, another one is exact."""
    fast, model = compiled_chain("chain")
    session = new_session(fast, "triton", 0.0, slots=2)
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(1, *SHAPE, generator=generator)
    session.step({"idle": x.cuda()})
    frozen = x
    for t in range(600):
        kind = ("pixel", "same", "same", "corner", "same")[t % 5]
        x = move(x, kind, generator)
        result = session.step({"s": x.cuda()})["s"]
        active = sum(result.report().active_px)
        assert (active == 0) == (kind == "same"), t
        if t % 50 == 3:
            assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
    frozen = move(frozen, "pixel", generator)
    before = snapshot(session)
    result = session.step({"idle": frozen.cuda()}, record=True)["idle"]
    assert_active(session, before, result, 0)
    assert int(result.changed.sum()) == 1
