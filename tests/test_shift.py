"""What a plan knows of windows that move: strides, lines, rings."""

from itertools import product

import pytest

from ring_worlds import NETS, Point, compiled
from torchdelta.plan import explain
from torchdelta.plan.shift import BORDER, KEPT, UNSEEN


@pytest.mark.parametrize(
    ("net", "total", "last"),
    [
        ("strides", (4, 4), (4, 4)),
        ("unet", (4, 4), (1, 1)),
        ("excite", (2, 2), (2, 2)),
        ("bilinear", (2, 2), (1, 1)),
        ("transposed", (3, 3), (1, 1)),
        ("shuffle", (2, 2), (1, 1)),
        ("reflect", (2, 2), (2, 2)),
        ("corners", (2, 2), None),
        ("position", (1, 1), None),
        ("flatten", (4, 4), None),
        ("dense", (1, 1), None),
    ],
)
def test_strides(net: str, total: Point, last: Point | None) -> None:
    plan = compiled(net)[0].plan
    assert plan.total_stride == total
    assert plan.shifts.strides[plan.input] == (1, 1)
    assert plan.shifts.strides[plan.outputs[0]] == last
    absolute = {i for i, s in enumerate(plan.steps) if plan.shifts.strides[s.output] is None}
    assert plan.shifts.reasons.keys() == absolute
    text = explain(plan, moves=True)
    assert f"multiples of {total[0]}x{total[1]} px" in " ".join(text.split())
    assert sum(" whole: " in line for line in text.splitlines()) >= bool(absolute)
    assert "at a move" not in explain(plan)


def test_steps_that_hang_on_their_place_say_why() -> None:
    reasons = {net: set(compiled(net)[0].plan.shifts.reasons.values()) for net in NETS}
    assert reasons["strides"] == reasons["unet"] == reasons["pools"] == set()
    assert reasons["corners"] == {"align_corners"}
    assert "a constant per position" in reasons["position"]
    assert "every number has its place" in reasons["flatten"]
    assert reasons["excite"] >= {"tiles of a global pool", "a global pool"}
    assert "its windows follow no shift" in reasons["beside"]
    assert "beside values that follow no shift" in reasons["beside"]
    assert "dense" in reasons["dense"]


@pytest.mark.parametrize("net", sorted(NETS))
def test_lines_are_what_their_definition_says(net: str) -> None:
    plan = compiled(net)[0].plan
    sy, sx = plan.total_stride
    makers = {s.output: s for s in plan.steps}
    for shift in ((sy, 0), (-sy, sx), (0, -2 * sx), (3 * sy, 3 * sx)):
        for value, exact in product(plan.owners, (False, True)):
            lines = plan.shifts.lines(value.index, shift, exact)
            stride = plan.shifts.strides[value.index]
            for axis, (n, line) in enumerate(zip(value.size, lines, strict=True)):
                if stride is None:
                    assert (line == UNSEEN).all()
                    continue
                k = int(shift[axis] / stride[axis])
                for o in range(n):
                    kind = KEPT if 0 <= o + k < n else UNSEEN
                    step = makers.get(value.index)
                    if kind == KEPT and exact and step is not None:
                        changed = [
                            reads(fp, axis, o) != {
                                v - int(shift[axis] / plan.shifts.strides[source][axis])
                                for v in reads(fp, axis, o + k)
                            }
                            for source, fp in zip(step.inputs, step.footprints, strict=True)
                            if (fp.rows, fp.cols)[axis] is not None
                        ]  # fmt: skip
                        kind = BORDER if any(changed) else KEPT
                    assert line[o] == kind, (value.name, axis, o)


def reads(footprint: object, axis: int, o: int) -> set[int]:
    line = (footprint.rows, footprint.cols)[axis]
    return {int(v) for v in line.taps[o] if v >= 0}


def test_rings_are_reduced_positions() -> None:
    plan = compiled("unet")[0].plan
    for origin in ((0, 0), (-8, 12), (400, -4000)):
        rings, k = plan.shifts.rings(origin), plan.shifts.pixels(origin)
        for v in plan.values:
            stride = plan.shifts.strides[v.index]
            for axis in (0, 1):
                assert k[v.index, axis] == origin[axis] / stride[axis]
                assert rings[v.index, axis] == k[v.index, axis] % v.size[axis]
