"""Where our time goes: single steps, and sums by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

SHOWN_STEPS = 12
# of the dense operations in the line that sums them up
SHOWN_DENSE = 3


def by_operation(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add steps up by operation, the costliest first.

    steps:   as `StepStats` has them
    returns: of each operation: op, dense, how many steps, ms (None where none was timed), mac_share
    """
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for step in steps:
        key = step["kind"], step["dense"]
        one = found.setdefault(
            key, {"op": key[0], "dense": key[1], "steps": 0, "ms": None, "mac_share": 0.0}
        )
        one["steps"] += 1
        one["mac_share"] += step["mac_share"]
        if step["ms"] is not None:
            one["ms"] = (one["ms"] or 0.0) + step["ms"]
    return sorted(found.values(), key=lambda one: -(one["ms"] or 0.0))


def dense_line(operations: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what dense steps take of all: "dense steps 66.9 of 84.9 ms"; None without any."""
    dense = [one for one in operations if one["dense"]]
    if not dense:
        return None
    taken, total = (sum(one["ms"] or 0.0 for one in some) for some in (dense, operations))
    names = ", ".join(f"{one['op']} {one['ms'] or 0.0:.1f}" for one in dense[:SHOWN_DENSE])
    more = " …" if len(dense) > SHOWN_DENSE else ""
    count = sum(one["steps"] for one in dense)
    return f"dense steps {taken:.1f} of {total:.1f} ms: {count} steps ({names}{more})"


def operations_table(operations: Sequence[Mapping[str, Any]]) -> Table:
    """Print the sums."""
    total_ms = sum(one["ms"] or 0.0 for one in operations)
    table = Table(
        box=box.SIMPLE, pad_edge=False, title_justify="left",
        title="steps of ours by operation, timed one by one in a pass of their own",
    )  # fmt: skip
    table.add_column("operation")
    for column in ("steps", "ms", "of all", "MAC share"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in operations:
        ms = one["ms"]
        share = "-" if ms is None or not total_ms else f"{ms / total_ms:.1%}"
        table.add_row(
            f"{one['op']} (dense)" if one["dense"] else one["op"], str(one["steps"]),
            "-" if ms is None else f"{ms:.3f}", share, f"{one['mac_share']:.2%}",
        )  # fmt: skip
    return table


def steps_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """Print the slowest steps."""
    title = f"slowest steps of ours, measured apart ({len(steps)} in all)"
    table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left")
    table.add_column("step", overflow="fold")
    table.add_column("operation")
    for column in ("shape", "ms", "active", "MAC share"):
        table.add_column(column, justify="right", no_wrap=True)
    for step in steps[:SHOWN_STEPS]:
        ms = "-" if step["ms"] is None else f"{step['ms']:.3f}"
        table.add_row(
            step["name"], f"{step['kind']} (dense)" if step["dense"] else step["kind"],
            "x".join(map(str, step["shape"])), ms,
            f"{step['active_share']:.1%}", f"{step['mac_share']:.2%}",
        )  # fmt: skip
    return table
