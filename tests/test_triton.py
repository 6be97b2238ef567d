"""The triton engine in Triton's interpreter: operations, lists, forced sets, streams."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import torchdelta
from cases import OP_CASES, WIDE_CASES
from chain_nets import NETS, SHAPE, compiled_chain, conv
from streams import dense, history, play
from support import (
    LONG,
    assert_active,
    compiled,
    make_engine,
    new_session,
    run_infinite_resize,
    run_op_case,
    same_bits,
    snapshot,
    wrote_only,
)
from torchdelta.engines.triton.launch import Launch
from torchdelta.plan import Plan
from torchdelta.runtime.inspect import buffers_of, frame_state
from torchdelta.runtime.measure import forced_step
from torchdelta.runtime.session import Session
from triton_runs import CPU, language_is_patched_once


@pytest.fixture(autouse=True, scope="module")
def _quicker() -> Iterator[None]:
    with language_is_patched_once():
        yield


# relative L2 against the stock operation in float32: other orders of summation; one rounding of the
# result, and of each intermediate of a composed case
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# float32 shows which pixels are computed; of the others what is stored and gated
KINDS = {
    "fp32": ("first", "corner", "same"),
    "fp16": ("first", "patch"),
    # once per operation
    "bf16": ("first", "all"),
}

# the interpreter takes milliseconds per block: small pictures
LARGEST, LARGEST_WIDE = (7, 9), (5, 6)
SIZES = {
    # more than one block of the input gate and of the select kernels
    "conv-3x3": (24, 23),
    "maxpool-13-s1": (5, 6),
    "global-max": (17, 19),
    "pixel-unshuffle": (6, 9),
    "add-per-position": (9, 7),
    "conv-many-groups": (5, 6),
    # long sums
    "conv-1x1-1100": (3, 3),
    "conv-3x3-370": (2, 3),
}
# what no kernel computes, beside the dense steps
FOREIGN = {"pow-const", "pow", "functions-2"}


def small(case: str) -> tuple[int, int]:
    """Cut a case's picture down, to a size that is odd or even as it was."""
    sizes = zip(OP_CASES[case][2][1:], LARGEST_WIDE if case in WIDE_CASES else LARGEST, strict=True)
    if OP_CASES[case][0] == "conv_transpose2d":
        # the result is larger
        sizes = zip(OP_CASES[case][2][1:], (5, 6), strict=True)
    h, w = (n if n <= most else most - (most - n) % 2 for n, most in sizes)
    return SIZES.get(case, (h, w))


# a kernel each of what walks windows, reduces, and takes maxima
OTHER_VERSIONS = {"maxpool2d", "softmax", "argmax"}


def runs() -> list[object]:
    """List (case, dtype): float32 and fp16 for all, bf16 once per operation."""
    seen: set[str] = set()
    found = []
    for case in OP_CASES:
        op = OP_CASES[case][0]
        names = ["fp32", "fp16"] if op in seen or op == "dense" else ["fp32", "fp16", "bf16"]
        seen.add(op)
        for name in names:
            marks = [pytest.mark.xdist_group(case)]
            if op in OTHER_VERSIONS:
                marks.append(pytest.mark.versions)
            found.append(pytest.param(case, name, id=f"triton-{case}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "dtype"), runs())
def test_op(case: str, dtype: str) -> None:
    """Each frame's result is the stock operation's (`run_op_case`)."""
    size = small(case)
    fast, _ = compiled(case, size)
    assert OP_CASES[case][0] in {step.op.name for step in fast.plan.steps}
    foreign = make_engine("triton", fast.plan, CPU, DTYPES[dtype]).foreign_steps()
    alone = {step.name for step in fast.plan.steps if step.dense}
    assert set(foreign) == alone or case in FOREIGN, foreign
    # a second stream once per case, and not where channels are what the case is about
    alone = dtype != "fp32" or case in WIDE_CASES
    run_op_case(
        "triton", case, LIMITS[DTYPES[dtype]], dtype=DTYPES[dtype], kinds=KINDS[dtype], size=size,
        alone=alone,
    )  # fmt: skip


def test_every_op_has_a_case_in_bf16() -> None:
    ops = {OP_CASES[p.values[0]][0] for p in runs() if p.values[1] == "bf16"}
    assert ops == {op for op, _, _ in OP_CASES.values()} - {"dense"}


each_net = pytest.mark.parametrize(
    "net", [pytest.param(net, marks=pytest.mark.xdist_group(f"net {net}")) for net in NETS]
)


def shared_lists(session: Session) -> int:
    """Count the steps that walk over another step's list."""
    return sum(bool(use.filters) for use in session.engine.program.shared.uses)


@pytest.mark.versions
@each_net
def test_shared_lists_at_tolerance_0(net: str) -> None:
    """Active sets are the torch engine's, step by step; results are dense (P1)."""
    fast, model = compiled_chain(net)
    session = new_session(fast, "triton", 0.0)
    oracle = new_session(fast, "torch", 0.0)
    assert shared_lists(session) >= 1
    for t, x in enumerate(history(("pixel", "patch", "corner"), 1)):
        before = snapshot(session)
        result, expected = (s.step({"s": x}, record=True)["s"] for s in (session, oracle))
        for name, mask in result.active.items():
            assert torch.equal(mask, expected.active[name].expand(mask.shape)), (t, name)
        assert torch.equal(result.changed, expected.changed)
        assert torch.equal(result.output_changed, expected.output_changed.expand_as(
            result.output_changed))  # fmt: skip
        assert_active(session, before, result, 0)
        assert wrote_only(session, before, {0: result})
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5
        assert result.stats.mac_share == pytest.approx(expected.stats.mac_share)


def launches_of(session: Session) -> list[Launch]:
    """List the launches of a session's one kind of frame."""
    (frame,) = session.engine.runners[frame_state(session)]._frames.values()
    return [item for _, part in frame.work for item in part if isinstance(item, Launch)]


# kernel, stride, padding and dilation (y, x each), and the width of the input
BY_WORDS = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 24), ((3, 3), (1, 1), (1, 1), (1, 1), 19),
    ((3, 3), (1, 1), (0, 0), (1, 1), 18), ((3, 3), (2, 2), (1, 1), (1, 1), 32),
    ((3, 3), (2, 2), (1, 1), (1, 1), 35), ((7, 7), (2, 2), (3, 3), (1, 1), 40),
    ((1, 5), (1, 1), (0, 6), (1, 3), 21), ((5, 1), (3, 1), (2, 0), (2, 1), 9),
    ((2, 2), (2, 2), (0, 0), (1, 1), 17), ((1, 15), (1, 2), (0, 7), (1, 1), 33),
    ((3, 3), (1, 1), (5, 6), (1, 1), 7), ((1, 1), (2, 2), (0, 0), (1, 1), 48),
    ((1, 8), (1, 1), (0, 0), (1, 1), 26), ((3, 3), (1, 1), (1, 1), (1, 1), 3),
]  # fmt: skip
BY_PIXELS = [
    ((1, 17), (1, 1), (0, 8), (1, 1), 24), ((1, 9), (1, 1), (0, 0), (1, 1), 20),
    ((3, 3), (3, 3), (1, 1), (1, 1), 25), ((17, 2), (1, 1), (8, 0), (1, 1), 12),
    ((1, 1), (3, 3), (2, 2), (1, 1), 10),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation", "width", "by_words"),
    [(*case, True) for case in BY_WORDS] + [(*case, False) for case in BY_PIXELS],
)
def test_selections_through_windows(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    dilation: tuple[int, int],
    width: int,
    by_words: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lists hold what the footprint says, wherever pixels lie in a word."""
    # even widths: programs as for large maps
    monkeypatch.setattr("torchdelta.engines.triton.select.FEW_PROGRAMS", width % 2)
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, kernel, stride, pad, dilation).eval()
    fast = torchdelta.compile(conv, torch.rand(1, 1, 7, width), input_range=(0, 1))
    session = new_session(fast, "triton", 0.0, slots=2)
    still, x = torch.rand(1, 1, 7, width), torch.rand(1, 1, 7, width)
    # outputs that see nothing but padding, too
    for result in session.step({"a": still, "b": x}, record=True).values():
        assert all(mask.all() for mask in result.active.values())
    names = {launch.kernel.fn.__name__ for launch in launches_of(session)}
    assert ("select_words" in names) == by_words
    assert ("select" in names) == (not by_words)
    for _ in range(4):
        x = torch.where(torch.rand_like(x) < 0.04, 1 - x, x)
        before = snapshot(session)
        results = session.step({"a": still, "b": x}, record=True)
        assert_active(session, before, results["b"], 1)
        assert not any(mask.any() for mask in results["a"].active.values())


@pytest.mark.parametrize("net", ["bottleneck", "downsampling", "inverted-residual", "scales"])
def test_shared_lists_with_gates(net: str) -> None:
    """With a tolerance, active sets are what this engine's own gates published (P3)."""
    fast, _ = compiled_chain(net)
    session = new_session(fast, "triton", 0.1)
    quiet = False
    for x in history(("patch", "noise", "pixel"), 2):
        before = snapshot(session)
        result = session.step({"s": x}, record=True)["s"]
        assert_active(session, before, result, 0)
        assert wrote_only(session, before, {0: result})
        audit = session.stream("s").audit()
        assert audit.ok, str(audit)
        quiet |= any(v.worst > v.allowance for v in audit.values)
    assert quiet, "no gate kept anything back"


@pytest.mark.parametrize(
    ("net", "some"),
    [("downsampling", True), ("cat-of-six", False), *([("downsampling", False)] if LONG else [])],
)
def test_forced_sets(net: str, some: bool) -> None:
    """Forced sets replace what was found, are published whole, and leave what follows in order."""
    fast, _ = compiled_chain(net)
    plan = fast.plan
    generator = torch.Generator().manual_seed(3)
    masks: dict[tuple[int, int], Tensor] = {}
    for step in plan.steps:
        size = plan.values[step.output].size
        masks.setdefault(size, torch.rand(size, generator=generator) < 0.2)
    steps = range(1, len(plan.steps), 2) if some else range(len(plan.steps))
    forced = {i: masks[plan.values[plan.steps[i].output].size] for i in steps}
    sessions = [new_session(fast, engine, 0.0) for engine in ("triton", "torch")]
    frames = history(("same", "patch", "same", "pixel"), 4)
    for t, x in enumerate(frames):
        given = forced if t in (1, 2) else None
        results = [forced_step(s, {"s": x}, given, record=True)["s"] for s in sessions]
        for i, step in enumerate(plan.steps):
            active = [r.active[step.name].expand(masks_size(plan, i)) for r in results]
            assert torch.equal(*active), (t, step.name)
            if given and i in given:
                assert torch.equal(active[0], given[i])
        counts = [r.report().active_px for r in results]
        assert counts[0] == counts[1]
        for mine, other in zip(*(snapshot(s) for s in sessions), strict=True):
            assert torchdelta.relative_error(mine, other) <= 1e-5


def masks_size(plan: Plan, index: int) -> tuple[int, int]:
    return plan.values[plan.steps[index].output].size


def test_forced_sets_that_differ_between_followers() -> None:
    """Steps that share a list get their own ones where their forced sets differ."""
    fast, _ = compiled_chain("chain")
    generator = torch.Generator().manual_seed(5)
    forced = {i: torch.rand(SHAPE[1:], generator=generator) < 0.2
              for i in range(len(fast.plan.steps))}  # fmt: skip
    session = new_session(fast, "triton", 0.0)
    frames = history(("patch", "pixel"), 6)
    session.step({"s": frames[0]})
    active = forced_step(session, {"s": frames[1]}, forced, record=True)["s"].active
    for i, step in enumerate(fast.plan.steps):
        assert torch.equal(active[step.name], forced[i])
    # and back to what really changed
    before = snapshot(session)
    result = session.step({"s": frames[2]}, record=True)["s"]
    assert_active(session, before, result, 0)


@pytest.mark.parametrize("net", ["inverted-residual"])
def test_streams_at_tolerance_0(net: str) -> None:
    """Joins, leaves, resets, refreshes, uneven arrival: as alone (P4), and dense (P1)."""
    fast, model = compiled_chain(net)

    def check(name: str, result: torchdelta.Result, x: Tensor) -> None:
        assert torchdelta.relative_error(result.output, dense(model, x)) <= 1e-5

    play(fast, 0.0, check)


@pytest.mark.parametrize("net", ["bottleneck"])
def test_streams_with_gates(net: str) -> None:
    """As alone (P4), audited (P3), idle on the same frames (P5), and fresh after a refresh (P2)."""
    fast, _ = compiled_chain(net)
    session, last = play(fast, 0.08, lambda *_: None)
    for name in session.streams:
        audit = session.stream(name).audit()
        assert audit.ok, str(audit)
    # everything that is in gets its last frame again
    frames = {name: last[name] for name in session.streams}
    before = snapshot(session)
    for result in session.step(frames, record=True).values():
        assert result.report().active_px == [0] * len(fast.plan.steps)
        assert result.stats.changed_input == result.stats.mac_share == 0.0
        assert not any(mask.any() for mask in result.active.values())
        assert not result.changed.any()
        assert not result.output_changed.any()
    assert all(same_bits(x, y).all() for x, y in zip(before, snapshot(session), strict=True))
    session.stream("c").refresh()
    assert session.step({"c": last["c"]})["c"].stats.first
    fresh = new_session(fast, "triton", 0.08, profile=session.stream("c").profile())
    fresh.step({"c": last["c"]})
    for old, new in zip(buffers_of(session, "c"), buffers_of(fresh, "c"), strict=True):
        assert same_bits(old, new).all()


def tile_limits(session: Session) -> set[tuple[int, int]]:
    """Give the lengths up to which convolutions take their small and their middle tiles."""
    launches = launches_of(session)
    names = ("small_rows", "middle_rows")
    return {tuple(launch.args[n] for n in names) for launch in launches if names[0] in launch.args}


def test_lists_of_any_length_give_the_same_bits() -> None:
    """Tiles and the programs of a split sum follow a list's length: P1 holds bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(5, 24, 3), nn.ReLU(), conv(24, 9, 3)).eval()
    shape = (5, 9, 11)
    fast = torchdelta.compile(model, torch.rand(1, *shape), input_range=(0, 1))
    engine = make_engine("triton", fast.plan, CPU, torch.float32)
    assert any(packed.splits > 1 for packed in engine.program.packed.values())
    frames = history(("pixel", "corner", "patch"), 8, shape)
    session = new_session(fast, "triton", 0.0)
    lengths: set[int] = set()
    for x in frames:
        lengths |= set(session.step({"s": x})["s"].report().active_px)
    ((small, middle),) = tile_limits(session)
    assert min(lengths) <= small < middle < max(lengths)
    assert any(small < n <= middle for n in lengths)
    whole = new_session(fast, "triton", 0.0)
    whole.step({"s": frames[-1]})
    for x, y in zip(snapshot(session), snapshot(whole), strict=True):
        assert same_bits(x, y).all()


def test_phases_of_an_odd_map_have_lists_of_different_length() -> None:
    """Of 7x7 pixels the first phase of a deconvolution has 16, more than a fourth."""
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(3, 4, 3, 2, 1).eval()
    x = torch.rand(1, 3, 4, 4)
    session = new_session(torchdelta.compile(model, x, input_range=(0, 1)), "triton", 0.0)
    out = session.step({"s": x})["s"].output
    assert out.shape[2:] == (7, 7)
    assert torchdelta.relative_error(out, dense(model, x)) <= 1e-5


def test_bilinear_does_not_read_places_of_weight_0() -> None:
    run_infinite_resize("triton")
