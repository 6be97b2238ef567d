"""Which list of pixels each step walks over, and what makes the lists (no Triton in here).

A step with a footprint of its own (a 3x3 convolution) gets a *selection*: one launch that looks at
the stamps of its inputs and lists the active pixels. A step that computes each pixel from the
pixels at its own place (a 1x1 convolution, a residual addition) *follows* the step that wrote its
input: what changed there lies on that step's list already, so it walks over the same list and skips
the pixels whose stamps did not change. Where such a step has another input, that one's changes are
added to the list beforehand ("wide" list), if they are known by then.

Steps that do not need each other run in *lanes* of the frame's graph, side by side. Within a lane
one comes after the other; what a step needs from another lane it waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torchdelta.ops import ConvTranspose2d
from torchdelta.ops.base import Axis, Footprint
from torchdelta.plan import Plan
from torchdelta.plan.ir import Step

# values whose stamps a follower looks at
MOST_FILTERS = 2
# sources that one launch of a selection takes
MOST_SOURCES = 4
# taps up to which a window is unrolled
MOST_TAPS = 49
# lanes of a graph
MOST_LANES = 4
# what waiting for another lane costs, in launches: a step leaves its lane where it gains more
WAIT_LAUNCHES = 1
# the step that all others wait for: the input gate
INPUT = -1

Source = tuple[int, Footprint]


@dataclass
class Selection:
    """What makes the lists of one step, and of those that follow it.

    sources: of the step; extra: values whose changes at the same place are added for followers
    """

    step: int
    sources: list[Source]
    extra: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Use:
    """The list that a step walks over.

    leader:  step whose selection makes it; wide: the wide one
    filters: values one of which must have changed at a pixel; (): the list is exact
    """

    leader: int
    wide: bool = False
    filters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Uses by step, and selections by the step that they precede."""

    uses: tuple[Use, ...]
    selections: dict[int, Selection]


def sources_of(plan: Plan, step: Step) -> list[Source]:
    """List the written values that a step's inputs consist of, each with its footprint, once."""
    found: dict[tuple[int, int], Source] = {}
    for value, footprint in zip(step.inputs, step.footprints, strict=True):
        for owner in plan.values[value].owners:
            found.setdefault((owner, id(footprint)), (owner, footprint))
    # a window holds its own middle: the residual of a 3x3 convolution on its input adds nothing
    return list(found.values())


def is_identity(footprint: Footprint) -> bool:
    """Whether an output pixel hangs on the input pixel at its own place alone."""
    return footprint.rows is None and not footprint.everything


def is_window(axis: Axis | None) -> bool:
    """Whether an axis follows the rule of a window."""
    return axis is not None and axis.table is None


def phases_of(plan: Plan, index: int) -> tuple[int, int]:
    """Give the phases of a step's output, each of which has a list: those of its stride."""
    op = plan.steps[index].op
    return op.stride if isinstance(op, ConvTranspose2d) else (1, 1)


def make_schedule(plan: Plan, *, share: bool = True, moving: bool = False) -> Schedule:
    """Decide for every step; share=False: each has an exact list of its own.

    moving: where windows move, a step follows only what the move makes active in the same places
    """
    uses: list[Use] = []
    selections: dict[int, Selection] = {}
    producer = {step.output: i for i, step in enumerate(plan.steps)}
    for i, step in enumerate(plan.steps):
        use = _follow(plan, step, uses, selections, producer, moving) if share else None
        if use is None:
            selections[i] = Selection(i, sources_of(plan, step))
            use = Use(i)
        uses.append(use)
    return Schedule(tuple(uses), selections)


def _follow(
    plan: Plan,
    step: Step,
    uses: list[Use],
    selections: dict[int, Selection],
    producer: dict[int, int],
    moving: bool,
) -> Use | None:
    """Find a list that holds all that may be active; None where the step needs its own."""
    sources = sources_of(plan, step)
    owners = tuple(dict.fromkeys(owner for owner, _ in sources))
    if not all(is_identity(footprint) for _, footprint in sources) or not owners:
        return None
    if len(owners) > MOST_FILTERS or any(owner not in producer for owner in owners):
        return None
    size = plan.values[step.output].size
    latest = uses[max(producer[owner] for owner in owners)]
    leader = selections[latest.leader]
    output = plan.steps[leader.step].output
    if plan.values[output].size != size:
        return None
    strides = plan.shifts.strides
    if moving and strides[output] != strides[step.output]:
        return None
    if isinstance(plan.steps[leader.step].op, ConvTranspose2d):
        return None
    wide, extra = False, []
    for owner in owners:
        use = uses[producer[owner]]
        if use.leader == leader.step:
            wide |= use.wide
        elif producer[owner] < leader.step:
            extra.append(owner)
        else:
            return None
    extra = [owner for owner in extra if owner not in leader.extra]
    if len(leader.sources) + len(leader.extra) + len(extra) > MOST_SOURCES:
        return None
    if any(plan.values[owner].size != size for owner in extra):
        return None
    leader.extra.extend(extra)
    wide |= any(producer[owner] < leader.step for owner in owners)
    return Use(leader.step, wide, owners)


@dataclass(frozen=True)
class Lanes:
    """The lanes of a frame's graph: of the input (step -1), all steps, and the end (the last).

    of:    by step, its lane; the input and the end are in lane 0
    waits: by step, those of other lanes that must be done before it begins, each its lane's latest
    """

    of: tuple[int, ...]
    waits: Mapping[int, tuple[int, ...]]

    @property
    def count(self) -> int:
        """Number of lanes."""
        return max(self.of, default=0) + 1

    @cached_property
    def awaited(self) -> frozenset[int]:
        """The steps that others wait for."""
        return frozenset(step for steps in self.waits.values() for step in steps)

    def lane(self, step: int) -> int:
        """Give a step's lane."""
        return self.of[step] if 0 <= step < len(self.of) else 0


def needs(plan: Plan, schedule: Schedule) -> list[set[int]]:
    """List for each step those that write what it reads: values, stamps, and its list.

    That is all that orders two steps: each writes channels, stamps, counters and lists of its own.
    """
    producer = {step.output: i for i, step in enumerate(plan.steps)}
    found = []
    for i, step in enumerate(plan.steps):
        read = [owner for owner, _ in sources_of(plan, step)]
        if i in schedule.selections:
            read += schedule.selections[i].extra
        found.append({INPUT, *(producer.get(value, INPUT) for value in read)})
        if schedule.uses[i].leader != i:
            found[i].add(schedule.uses[i].leader)
    return found


def make_lanes(plan: Plan, schedule: Schedule, most: int = MOST_LANES) -> Lanes:
    """Put each step, in order, into the lane where it can begin first.

    Time is counted in launches. Where two lanes are as good, it stays in that of what it needs.
    """
    lane_of = {INPUT: 0}
    done = {INPUT: 0}
    free = [0] * most
    # by lane and by step: of each lane the latest step that is done by then for certain
    known = [[INPUT - 1] * most for _ in range(most)]
    known[0][0] = INPUT
    known_by = {INPUT: list(known[0])}
    waits: dict[int, tuple[int, ...]] = {}

    def missing(lane: int, needed: set[int]) -> list[int]:
        return [step for step in needed if step > known[lane][lane_of[step]]]

    def start(lane: int, needed: set[int]) -> tuple[int, int, int]:
        waited = missing(lane, needed)
        ready = max((done[step] + WAIT_LAUNCHES for step in waited), default=0)
        return max(free[lane], ready), len(waited), lane

    def put(step: int, lane: int, needed: set[int], launches: int) -> None:
        waited = []
        begin = start(lane, needed)[0]
        # what is done before a later one need not be waited for
        for other in sorted(missing(lane, needed), reverse=True):
            if other > known[lane][lane_of[other]]:
                waited.append(other)
                pairs = zip(known[lane], known_by[other], strict=True)
                known[lane] = [max(pair) for pair in pairs]
        if waited:
            waits[step] = tuple(waited)
        known[lane][lane] = step
        known_by[step] = list(known[lane])
        lane_of[step] = lane
        free[lane] = done[step] = begin + launches

    for step, needed in enumerate(needs(plan, schedule)):
        _, _, lane = min(start(lane, needed) for lane in range(most))
        put(step, lane, needed, 1 + (step in schedule.selections))
    steps = range(len(plan.steps))
    put(len(steps), 0, {INPUT, *steps}, 0)
    return Lanes(tuple(lane_of[step] for step in steps), waits)
