"""Which lists the steps of the triton engine walk over; no Triton is needed for that."""

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

import random_nets
import torchdelta
from chain_nets import NETS, SHAPE, Branches, Fused, bottleneck, compiled_chain, conv
from torchdelta import EngineError
from torchdelta.engines import ENGINES
from torchdelta.engines.triton.schedule import (
    INPUT,
    MOST_FILTERS,
    MOST_LANES,
    MOST_SOURCES,
    Lanes,
    Schedule,
    Use,
    make_lanes,
    make_schedule,
)
from torchdelta.ops import OPS, Conv2d, ConvTranspose2d
from torchdelta.plan import Plan


def plan_of(*layers: nn.Module) -> Plan:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    return torchdelta.compile(model, torch.rand(1, *SHAPE), input_range=(0, 1)).plan


def schedule_of(*layers: nn.Module) -> tuple[Schedule, list[int]]:
    """Give the schedule, and the output of each step."""
    plan = plan_of(*layers)
    return make_schedule(plan), [step.output for step in plan.steps]


def test_what_reads_its_own_place_follows() -> None:
    schedule, out = schedule_of(conv(3, 4, 3), nn.Tanh(), conv(4, 4, 1), nn.ReLU(), conv(4, 2, 1))
    assert schedule.uses[0] == Use(0)
    followers = schedule.uses[1:]
    assert followers == tuple(Use(0, False, (value,)) for value in out[: len(followers)])
    assert list(schedule.selections) == [0]


def test_a_residual_makes_the_list_wide() -> None:
    schedule, out = schedule_of(conv(3, 8, 3), nn.ReLU(), bottleneck(8, 8))
    uses = schedule.uses
    assert uses[:3] == (Use(0), Use(0, False, (out[0],)), Use(2))
    assert uses[3].leader == 2
    assert uses[3].wide
    assert set(uses[3].filters) == {out[0], out[2]}
    # known before step 2 runs, so its launch can add it
    assert schedule.selections[2].extra == [out[0]]


def test_what_reads_the_frame_has_a_list_of_its_own() -> None:
    schedule, _ = schedule_of(conv(3, 4, 1), conv(4, 4, 1))
    assert schedule.uses[0] == Use(0)
    assert schedule.uses[1].leader == 0


def test_another_size_and_windows_have_lists_of_their_own() -> None:
    schedule, _ = schedule_of(conv(3, 4, 3), conv(4, 4, 1, 2), nn.MaxPool2d(2), conv(4, 4, 3))
    assert [use.leader for use in schedule.uses] == [0, 1, 2, 3]


def test_nobody_follows_a_transposed_convolution() -> None:
    """Its list is cut into phases."""
    schedule, out = schedule_of(nn.ConvTranspose2d(3, 4, 2, 2), conv(4, 4, 1), conv(4, 2, 1))
    assert schedule.uses == (Use(0), Use(1), Use(1, False, (out[1],)))


def test_three_values_side_by_side_have_a_list_of_their_own() -> None:
    branches = [conv(3, 2, 3) for _ in range(MOST_FILTERS + 1)]
    schedule, _ = schedule_of(Branches(branches, conv(2 * len(branches), 2, 1)))
    assert schedule.uses[-1] == Use(len(branches))
    schedule, _ = schedule_of(Branches(branches[:1], conv(2, 2, 1)))
    assert schedule.uses[-1].filters


def test_without_sharing_every_list_is_exact() -> None:
    for net in NETS:
        plan = compiled_chain(net)[0].plan
        schedule = make_schedule(plan, share=False)
        assert schedule.uses == tuple(Use(i) for i in range(len(plan.steps)))
        assert all(not selection.extra for selection in schedule.selections.values())


def simulate(plan: Plan, schedule: Schedule, generator: torch.Generator) -> None:
    """Let random parts of the active sets be published: every list holds what it must."""
    changed: dict[int, torch.Tensor] = {}

    def publish(value: int, among: torch.Tensor) -> None:
        changed[value] = among & (torch.rand(among.shape, generator=generator) < 0.5)

    publish(plan.input, torch.rand(plan.size, generator=generator) < 0.1)
    lists: dict[tuple[int, bool], torch.Tensor] = {}
    for i, (step, use) in enumerate(zip(plan.steps, schedule.uses, strict=True)):
        size = plan.values[step.output].size
        active = torch.zeros(size, dtype=torch.bool)
        for value, footprint in zip(step.inputs, step.footprints, strict=True):
            for owner in plan.values[value].owners:
                active |= footprint.active(changed[owner], size)
        if i in schedule.selections:
            selection = schedule.selections[i]
            own = torch.zeros(size, dtype=torch.bool)
            for value, footprint in selection.sources:
                own |= footprint.active(changed[value], size)
            wide = own.clone()
            for value in selection.extra:
                wide |= changed[value]
            lists[i, False], lists[i, True] = own, wide
        listed = lists[use.leader, use.wide]
        if use.filters:
            filtered = torch.stack([changed[value] for value in use.filters]).any(0)
            assert not (filtered & ~listed).any(), "a follower's pixel is on no list"
            listed = listed & filtered
        assert torch.equal(listed, active), step.name
        publish(step.output, active)


@pytest.mark.parametrize("name", [*NETS, *sorted(OPS)])
def test_lists_hold_what_is_active(name: str) -> None:
    """Filtered by its stamps, each step's list is its active set by definition."""
    seeds = range(1) if name in NETS else range(3)
    for seed in seeds:
        fast, _ = compiled_chain(name) if name in NETS else random_nets.compiled_net(name, seed)
        plan = fast.plan
        for share in (True, False):
            schedule = make_schedule(plan, share=share)
            assert all(
                len(s.sources) + len(s.extra) <= MOST_SOURCES
                for s in schedule.selections.values()
                if s.extra
            )
            for i, use in enumerate(schedule.uses):
                assert use.leader <= i
                leader = plan.steps[use.leader]
                assert not use.filters or not isinstance(leader.op, ConvTranspose2d)
                assert len(use.filters) <= MOST_FILTERS
            assert not races(plan, schedule, make_lanes(plan, schedule))
            generator = torch.Generator().manual_seed(seed)
            for _ in range(4):
                simulate(plan, schedule, generator)


def test_sharing_happens() -> None:
    """In each of the networks that are made for it; in a ResNet block more than half."""
    for net in NETS:
        uses = make_schedule(compiled_chain(net)[0].plan).uses
        assert any(use.filters for use in uses), net
        assert any(a.leader == b.leader for a, b in pairwise(uses)), net


# lanes

Cell = tuple[object, ...]


def touched(
    plan: Plan, schedule: Schedule, lanes: Lanes, index: int
) -> tuple[set[Cell], set[Cell]]:
    """List what a step reads and writes, of all memory that steps may share."""

    def channels(value: int) -> set[Cell]:
        v = plan.values[value]
        return {("state", v.buffer, v.offset + c) for c in range(v.channels)}

    step, use = plan.steps[index], schedule.uses[index]
    reads: set[Cell] = {("limits",), ("list", use.leader)}
    reads |= {("stamps", value) for value in use.filters}
    writes = {("stamps", step.output), *channels(step.output)}
    for value in step.inputs:
        reads |= channels(value)
    if index in schedule.selections:
        selection = schedule.selections[index]
        found = (*(value for value, _ in selection.sources), *selection.extra)
        reads |= {("stamps", value) for value in found}
        writes.add(("list", index))
    if isinstance(step.op, (Conv2d, ConvTranspose2d)):
        writes.add(("partial sums", lanes.of[index]))
    return reads, writes


def races(plan: Plan, schedule: Schedule, lanes: Lanes) -> list[tuple[int, int]]:
    """List the pairs of steps that meet in memory though neither is done before the other begins.

    The input gate goes before everything, the end behind it.
    """
    end = len(plan.steps)
    done: dict[int, set[int]] = {}
    latest: dict[int, int] = {}
    for step in range(INPUT, end + 1):
        lane = lanes.lane(step)
        direct = {latest[n] for n in (lane,) if n in latest} | {*lanes.waits.get(step, ())}
        done[step] = direct.union(*(done[other] for other in direct))
        latest[lane] = step
    steps = [touched(plan, schedule, lanes, index) for index in range(end)]
    found = [
        (a, b)
        for (a, (reads_a, writes_a)), (b, (reads_b, writes_b)) in combinations(enumerate(steps), 2)
        if (writes_a & (reads_b | writes_b) or reads_a & writes_b) and a not in done[b]
    ]
    found += [(INPUT, step) for step in range(end) if INPUT not in done[step]]
    return found + [(step, end) for step in range(end) if step not in done[end]]


@cache
def fused_plan() -> Plan:
    torch.manual_seed(0)
    return torchdelta.compile(Fused().eval(), torch.rand(1, 3, 8, 12), input_range=(0, 1)).plan


@pytest.mark.parametrize("name", ["squeeze-excite", "cat-of-six", "fused"])
def test_each_wait_is_needed(name: str) -> None:
    """Without any of them, two steps race; with all of them none do, in any number of lanes."""
    plan = fused_plan() if name == "fused" else compiled_chain(name)[0].plan
    schedule = make_schedule(plan)
    for most in range(1, MOST_LANES + 2):
        lanes = make_lanes(plan, schedule, most)
        assert lanes.count <= most
        assert not races(plan, schedule, lanes)
        for step, waits in lanes.waits.items():
            for n in range(len(waits)):
                fewer = {**lanes.waits, step: waits[:n] + waits[n + 1 :]}
                assert races(plan, schedule, replace(lanes, waits=fewer)), (step, waits[n])


def test_lanes_where_they_pay() -> None:
    """Branches of several launches run side by side; a chain, and a short side way, in one lane."""
    for name in ("chain", "bottleneck", "downsampling", "inverted-residual"):
        plan = compiled_chain(name)[0].plan
        assert make_lanes(plan, make_schedule(plan)) == Lanes((0,) * len(plan.steps), {}), name
    plan = compiled_chain("cat-of-six")[0].plan
    lanes = make_lanes(plan, make_schedule(plan))
    assert lanes.count == MOST_LANES
    # the cat is waited for in one place
    assert sum(len(waits) > 1 for waits in lanes.waits.values()) == 1
    plan = fused_plan()
    lanes = make_lanes(plan, make_schedule(plan))
    last = {name: step for step, name in enumerate(s.name for s in plan.steps)}
    branches = [[i for n, i in last.items() if f"branches.{b}." in n] for b in range(3)]
    assert all(branches), list(last)
    # each branch stays in a lane
    assert [len({lanes.of[i] for i in steps}) for steps in branches] == [1, 1, 1]
    assert len({lanes.of[steps[0]] for steps in branches}) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    usable, why = ENGINES["triton"].usable()
    assert not usable
    assert "PyTorch finds no GPU" in why or "pip install triton" in why
    model, x = nn.Conv2d(3, 2, 1).eval(), torch.rand(1, 3, 5, 7)
    with pytest.raises(EngineError, match=r"engine 'triton' cannot run here: (PyTorch|Triton)"):
        torchdelta.compile(model, x, engine="triton")
    fast = torchdelta.compile(model, x)
    assert fast.engine != "triton"
    assert f"not triton: {why}" in fast.engine_reason
