"""From a captured program to a frozen plan: lower, run the passes, lay out, freeze."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.export import ExportedProgram

from torchdelta.errors import CaptureError, first_lines, involved
from torchdelta.ops.base import IDENTITY
from torchdelta.ops.move import state_shape
from torchdelta.ops.preprocess import Preprocess
from torchdelta.plan.draft import Draft, DraftGraph
from torchdelta.plan.ir import Step, Value
from torchdelta.plan.layout import Layout
from torchdelta.plan.lower import lower
from torchdelta.plan.passes import PASSES
from torchdelta.plan.plan import Plan

# a vector (a global pool's result) behind which lies less of the network's MACs is not gated: being
# quiet would cost accuracy and save nothing. Behind squeeze-and-excitation's lies nearly all
CHEAP_SHARE = 0.01


def build(
    program: ExportedProgram,
    preprocess: Preprocess,
    notes: tuple[str, ...] = (),
    *,
    per_stream: tuple[bool, ...] | None = None,
    weight_dtype: torch.dtype = torch.float32,
) -> Plan:
    """Make a plan from an exported program.

    per_stream:   by leaf of the result, whether the model gives a row of it per stream; None: what
                  is computed from the frame has one, constants do not
    weight_dtype: of the plan's weights; float64 to find out what float32 costs
    Raises: CaptureError with all operations that cannot be run as steps.
    """
    try:
        return _build(program, preprocess, notes, per_stream, weight_dtype)
    except CaptureError:
        raise
    except Exception as error:
        draft = involved(error, Draft)
        raise CaptureError(
            f"no plan can be made of the graph{f', at {draft.name}' if draft else ''}: "
            f"{first_lines(error)}. This is a defect of torchdelta; please report it"
        ) from error


def _build(
    program: ExportedProgram,
    preprocess: Preprocess,
    notes: tuple[str, ...],
    per_stream: tuple[bool, ...] | None,
    weight_dtype: torch.dtype,
) -> Plan:
    graph = lower(program, weight_dtype)
    for run_pass in PASSES:
        run_pass(graph)
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    layout = Layout(graph)
    drafts = graph.drafts
    values = _values(graph, layout)
    index = {d: i for i, d in enumerate(drafts)}
    steps = tuple(_step(d, index) for d in drafts if d.kind == "op")
    c, h, w = drafts[0].shape
    return Plan(
        preprocess=preprocess,
        shape=(c, h, w),
        values=_without_idle_gates(values, steps),
        buffers=tuple(layout.buffers),
        steps=steps,
        input=0,
        outputs=tuple(index[o] if isinstance(o, Draft) else o for o in graph.outputs),
        output_shapes=tuple(o.whole if isinstance(o, Draft) else None for o in graph.outputs),
        repeated=tuple(
            i
            for i, rows in enumerate(per_stream or ())
            if rows and i < len(graph.outputs) and not isinstance(graph.outputs[i], Draft)
        ),
        out_spec=out_spec,
        notes=tuple(graph.notes) + notes,
    )


def _values(graph: DraftGraph, layout: Layout) -> tuple[Value, ...]:
    spans: list[tuple[int, int, int]] = []
    for d in graph.drafts:
        place = layout.places[d]
        spans.append((place.buffer, place.offset, place.offset + state_shape(d.shape)[2]))
    written = [i for i, d in enumerate(graph.drafts) if d.kind in ("op", "input")]

    def owners(i: int) -> tuple[int, ...]:
        if i in written:
            return (i,)
        buffer, lo, hi = spans[i]
        return tuple(
            j for j in written if spans[j][0] == buffer and spans[j][1] < hi and spans[j][2] > lo
        )

    all_owners = [owners(i) for i in range(len(graph.drafts))]
    index = {d: i for i, d in enumerate(graph.drafts)}
    # values that some step reads, directly or through a view; the others only the caller reads
    read = {
        j
        for d in graph.drafts
        if d.kind == "op"
        for source in d.inputs
        for j in all_owners[index[source]]
    }
    return tuple(
        Value(
            index=i,
            name=d.name,
            shape=d.shape,
            buffer=spans[i][0],
            offset=spans[i][1],
            dtype=d.dtype,
            owners=all_owners[i],
            gated=(d.op is not None and d.op.gated and d.dtype is None and i in read),
        )
        for i, d in enumerate(graph.drafts)
    )


def _without_idle_gates(values: tuple[Value, ...], steps: tuple[Step, ...]) -> tuple[Value, ...]:
    """Leave vectors ungated that little depends on."""
    whole = sum(step.macs for step in steps)
    # the steps that depend on a value, by the value's index
    behind: dict[int, set[int]] = {v.index: set() for v in values}
    for i in reversed(range(len(steps))):
        after = behind[steps[i].output] | {i}
        for source in steps[i].inputs:
            for owner in values[source].owners:
                behind[owner] |= after
    return tuple(
        replace(v, gated=False)
        if v.size == (1, 1) and sum(steps[i].macs for i in behind[v.index]) < CHEAP_SHARE * whole
        else v
        for v in values
    )


def _step(draft: Draft, index: dict[Draft, int]) -> Step:
    op = draft.op
    assert op is not None
    h, w, _ = state_shape(draft.shape)
    sizes = [state_shape(d.shape)[:2] for d in draft.inputs]
    own = op.footprints(sizes[: draft.arity], (h, w))
    # the epilogue's values are read at the output's own place
    rest = (IDENTITY,) * (len(draft.inputs) - draft.arity)
    return Step(
        name=draft.name,
        op=op,
        inputs=tuple(index[d] for d in draft.inputs),
        arity=draft.arity,
        output=index[draft],
        weights=dict(draft.weights),
        epilogue=draft.epilogue,
        footprints=own + rest,
        macs=op.macs(draft.weights, (h, w)),
        reason=draft.reason,
    )
