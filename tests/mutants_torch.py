"""Faults of sessions, gates and the torch engine."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "footprint one pixel short", "ops/base.py", "Axis.spread",
        "for t in range(self.kernel):\n                line",
        "for t in range(max(1, self.kernel - 1)):\n                line",
        tests=("test_ops.py",), names="footprint and conv-3x3", few=True,
    ),
    Mutant(
        "publish skipped", "engines/torch_engine.py", "TorchEngine._recompute",
        "put_rows(stored, where, rows)", "pass",
        tests=("test_ops.py",), names="test_op and (conv-3x3 or conv-1x1)", few=True,
    ),
    Mutant(
        "mask not cleared", "engines/torch_engine.py", "TorchEngine._recompute",
        "mask = torch.zeros(active.numel()", "mask = torch.ones(active.numel()",
        tests=("test_session.py",), names="change_masks", few=True,
    ),
    Mutant(
        "join without reset", "runtime/session.py", "Session._new",
        "Stream(name, slot, reason, motion,", "Stream(name, slot, None, motion,",
        tests=("test_session.py",), names="taken_over or join", few=True,
    ),
    Mutant(
        "threshold ignored", "engines/torch_engine.py", "TorchEngine._recompute",
        "value_gate(rows, old, gate.threshold,", "value_gate(rows, old, 0.0,",
        tests=("test_gate.py",), names="groups_that_moved", few=True,
    ),
    Mutant(
        "lowered to 0 without computing anew", "runtime/handle.py", "StreamHandle.set_tolerance",
        "if refresh or tolerance == 0 < known.tolerance:", "if refresh:",
        tests=("test_tolerance.py",), names="lowered and torch", few=True,
    ),
    Mutant(
        "audit by the threshold in force", "runtime/handle.py", "StreamHandle.audit",
        "largest = canvas.thresholds.largest[known.slot]",
        "largest = canvas.state.thresholds[known.slot]",
        tests=("test_tolerance.py",), names="higher and torch",
    ),
    Mutant(
        "a groups' count is a pixels' count", "engines/torch_engine.py", "TorchEngine._recompute",
        "len(hit), int(publish.sum())", "len(hit), len(hit)",
        tests=("test_published.py",),
    ),
    Mutant(
        "threshold far too large", "runtime/thresholds.py", "Thresholds._apply",
        "= tolerance * self._multiplier[v.index] * known",
        "= 3 * tolerance * self._multiplier[v.index] * known",
        tests=("test_gate.py",), names="multiplier",
    ),
    Mutant(
        "stale residual", "engines/torch_engine.py", "TorchEngine._active",
        "zip(step.inputs, step.footprints, strict=True)",
        "zip(step.inputs[: step.arity], step.footprints, strict=False)",
        tests=("test_networks.py",), names="resnet18", few=True,
    ),
    Mutant(
        "wrong cat offset", "state/state.py", "State.view",
        "buffer.narrow(2, v.offset, v.channels)",
        "buffer.narrow(2, max(0, v.offset - 1), v.channels)",
        tests=("test_ops.py",), names="test_op and cat", few=True,
    ),
    Mutant(
        "wrong stride offset", "engines/torch_engine.py", "_tile_inputs",
        "first = tile * side * step // op.pitch[axis] + offset",
        "first = tile * side * step // op.pitch[axis] + offset + step - 1",
        tests=("test_ops.py",), names="test_op and s2",
    ),
    Mutant(
        "bias dropped", "ops/conv.py", "Conv2d.rows",
        'F.linear(x, weights["weight"].flatten(1), weights.get("bias"))',
        'F.linear(x, weights["weight"].flatten(1))',
        tests=("test_ops.py",), names="test_op and (conv-3x3 or conv-1x1)",
    ),
    Mutant(
        "first-frame flag shared by streams", "runtime/session.py", "Session._run",
        "for name in full:\n            streams[name].full = None",
        "for each in self._streams.values():\n            each.full = None",
        tests=("test_session.py",), names="flag", few=True,
    ),
    Mutant(
        "NaN does not publish", "ops/gate.py", "value_gate",
        "return ~(group_norm(new.float() - stored.float(), norm, group) <= threshold)",
        "return group_norm(new.float() - stored.float(), norm, group) > threshold",
        tests=("test_gate.py",), names="nan", few=True,
    ),
    Mutant(
        "padding of a max pool read as 0", "ops/pool.py", "MaxPool2d.fill",
        'return float("-inf")', "return 0.0",
        tests=("test_ops.py",), names="max_pools",
    ),
    Mutant(
        "average over the wrong count", "ops/pool.py", "AvgPool2d._counts",
        "return (begin + k).clamp(max=n_in) - begin.clamp(min=0)",
        "return (begin + k).clamp(max=n_in) - begin",
        tests=("test_ops.py",), names="avgpool-nopad",
    ),
    Mutant(
        "input gate without dilation", "ops/gate.py", "_dilated",
        "return Axis(w, w, 3, pad=1).spread(Axis(h, h, 3, pad=1).spread(hot, 0), 1)",
        "return hot",
        tests=("test_gate.py",), names="dilates", few=True,
    ),
    Mutant(
        "refresh keeps old scales", "runtime/session.py", "Session._run",
        "thresholds.start(state, stream.slot, stream.tolerance)\n", "pass\n",
        tests=("test_gate.py",), names="black_first", few=True,
    ),
    Mutant(
        "refused frame takes a slot", "runtime/session.py", "Session._turn",
        "newcomers = [name for name in ready if", "newcomers = [name for name in frames if",
        tests=("test_session.py",), names="bad_first", few=True,
    ),
    Mutant(
        "slots not aligned alike", "state/state.py", "_buffers",
        "padded = [-(-size // unit) * unit for size in per_slot]", "padded = per_slot",
        tests=("test_session.py",), names="aligned_alike",
    ),
    Mutant(
        "a place of weight 0 is blended", "ops/resize.py", "source_places",
        "hi = np.where(part > 0, lo + 1, lo)", "hi = np.minimum(lo + 1, n - 1)",
        tests=("test_ops.py",), names="weight_0 or footprint and bilinear",
    ),
    Mutant(
        "a cell's neighbours are not published", "ops/gate.py", "input_gate",
        "wide = _dilated(hot).repeat_interleave", "wide = hot.repeat_interleave",
        tests=("test_gate.py",), names="in_cells",
    ),
    Mutant(
        "calls of another size go on in the same session", "api.py", "_goes_on",
        "(session.plan.size, session.slots) == (plan.size, rows)", "session.slots == rows",
        tests=("test_api.py",), names="other_sizes", few=True,
    ),
]  # fmt: skip
