"""Print a plan as a table: what runs where, sparse or dense, and why."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
from rich import box
from rich.table import Table

from torchdelta.console import PlainConsole
from torchdelta.plan.ir import Step, epilogue_name
from torchdelta.plan.plan import Plan
from torchdelta.plan.verdict import judge


def human(n: float, unit: str = "") -> str:
    """Write a count with a decimal prefix: 1234567 gives '1.23 M'."""
    for prefix in ("", "k", "M", "G"):
        if abs(n) < 1000:
            return f"{n:.3g} {prefix}{unit}".rstrip()
        n /= 1000
    return f"{n:.3g} T{unit}"


def explain(
    plan: Plan,
    dtype: torch.dtype = torch.float32,
    engine: str = "",
    foreign: Mapping[str, str] | None = None,
    whole: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    *,
    moves: bool = False,
) -> str:
    """Return the plan's table as text.

    Columns: step, operation with what is fused into it, output shape [C, H, W], MACs, state bytes
    per stream, and how it runs: sparse; whole (all of a small output when any input changed); or
    dense, with the reason. The verdict comes last: what may be expected of it.
    foreign: steps that the engine leaves to PyTorch, each with the reason
    whole: those that it computes whole whether or not their input changed, each with when
    notes: the engine's, beside the plan's
    moves: with what each step does when a moving camera's window moves: "follows", or all of it is
           active, with the reason
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("step", "operation"):
        table.add_column(title, overflow="fold")
    for title in ("shape", "MACs", "state"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("runs", overflow="fold")
    if moves:
        table.add_column("at a move", overflow="fold")
    for index, step in enumerate(plan.steps):
        value = plan.values[step.output]
        h, w = value.size
        state = h * w * value.channels * (value.dtype or dtype).itemsize
        at_move = plan.shifts.reasons.get(index)
        table.add_row(
            step.name,
            f"{step.op.name} {step.op.describe()}".strip() + epilogue_name(step.epilogue),
            "x".join(map(str, value.shape)),
            human(step.macs) if step.macs else "",
            human(state, "B"),
            _how(step, foreign or {}, whole or {}),
            *(["follows" if at_move is None else f"whole: {at_move}"] if moves else []),
        )
    out = PlainConsole(file=io.StringIO(), width=118, color_system=None)
    dense = sum(step.dense for step in plan.steps)
    pre = plan.preprocess
    out.print(
        f"input {'x'.join(map(str, plan.shape))} {pre.color}, values {pre.lo:g}..{pre.hi:g}"
        + (f", mean {_tuple(pre.mean)}, std {_tuple(pre.std)}" if pre.mean else "")
    )
    if engine:
        out.print(f"engine {engine}, {str(dtype).removeprefix('torch.')}")
    out.print(table)
    out.print(
        f"{len(plan.steps)} steps, {dense} of them dense; {human(plan.macs, 'MAC')} per dense "
        f"frame; state {human(plan.state_bytes(dtype), 'B')} per stream; {_strides(plan, moves)}"
    )
    for note in (*plan.notes, *notes):
        out.print(f"note: {note}")
    for line in judge(plan).lines():
        out.say(line)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())


def _strides(plan: Plan, moves: bool) -> str:
    total = f"{plan.total_stride[0]}x{plan.total_stride[1]}"
    said = f"total stride {total}"
    if plan.shifts.unknown_from is not None:
        said = f"total stride {total} as far as {plan.shifts.unknown_from}, unknown beyond"
    return f"{said}; windows move by multiples of {total} px" if moves else said


def _how(step: Step, foreign: Mapping[str, str], whole: Mapping[str, str]) -> str:
    by_pytorch = f"by PyTorch: {foreign[step.name]}" if step.name in foreign else ""
    if step.dense or step.name in whole:
        how = f"dense: {step.reason}" if step.dense else f"whole, {by_pytorch}"
        return f"{how}; {whole[step.name]}" if step.name in whole else how
    how = "sparse"
    if step.op.kind == "whole":
        how = f"whole: {step.op.whole_reason}"
    if by_pytorch:
        how += f", {by_pytorch}"
    return how


def _tuple(numbers: tuple[float, ...] | None) -> str:
    return "(" + ", ".join(f"{n:.4g}" for n in numbers or ()) + ")"
