"""Faults of windows that move, on the torch and the cpu engine."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "native: cells of a window's unseen pixels are hot", "native/src/masks.cpp", "for_hot",
        "own.known && ", "",
        tests=("test_ring_gate.py",), names="gated_alike",
    ),
    Mutant(
        "native: every pixel of a window's cells counts", "native/src/isa/input.h",
        "add_to_cells",
        ": count_bits(words_, x0, x1);", ": x1 - x0;",
        tests=("test_ring_gate.py",), names="gated_alike",
    ),
    Mutant(
        "ring begins elsewhere", "state/state.py", "State.pixels",
        "return Ring(view, (y, x))", "return Ring(view, (x, y))",
        tests=("test_ring.py",), names="torch and footprint_of_the_new_strip",
    ),
    Mutant(
        "ring does not wrap", "ops/base.py", "Ring.places",
        "return (index // w + self.origin[0]) % h * w",
        "return (index // w + self.origin[0]).clamp(max=h - 1) * w",
        tests=("test_ring.py",), names="torch and pans and strides",
    ),
    Mutant(
        "ring wraps one pixel late", "ops/base.py", "Ring.places",
        "+ (index % w + self.origin[1]) % w", "+ (index % w + self.origin[1]) % (w + 1) % w",
        tests=("test_ring.py",), names="torch and pans and strides",
    ),
    Mutant(
        "ring of another stream's window", "state/state.py", "State.pixels",
        "y, x = self.rings[slot, value].tolist()", "y, x = self.rings[0, value].tolist()",
        tests=("test_ring_streams.py",), names="torch and move_apart and strides", few=True,
    ),
    Mutant(
        "new strip compared with what lay there", "engines/torch_engine.py",
        "TorchEngine._uncovered",
        "return level > KEPT, level == UNSEEN", "return level > KEPT, level > UNSEEN",
        tests=("test_ring.py",), names="torch and without_comparing", few=True,
    ),
    Mutant(
        "new strip on the wrong side", "plan/shift.py", "Shifts._lines",
        "before = np.arange(n) + move", "before = np.arange(n) - move",
        tests=("test_ring.py",), names="torch and footprint_of_the_new_strip",
    ),
    Mutant(
        "old edge kept by exact borders", "plan/shift.py", "Shifts._lines",
        "line |= _crossing(reads, move, int(k[source, axis]))", "pass",
        tests=("test_ring.py",), names="torch and pans and strides", few=True,
    ),
    Mutant(
        "half a buffer turns", "plan/shift.py", "Shifts._follow",
        "mixed = {buffer for buffer, strides in alone.items() if len(strides) > 1}",
        "mixed = set[int]()",
        tests=("test_ring.py",), names="torch and pans and beside",
    ),
    Mutant(
        "resize with align_corners follows the window", "ops/resize.py", "Bilinear.fixed",
        "if self.align_corners:\n            return", "if not self:\n            return",
        tests=("test_ring.py",), names="torch and pans and corners",
    ),
    Mutant(
        "reset leaves the window where it was", "runtime/handle.py", "StreamHandle.reset",
        "known.tolerance, \"reset\", known.slot\n            )\n",
        "known.tolerance, \"reset\", known.slot\n            )\n"
        "            session._streams[self.name].rest = known.rest\n",
        tests=("test_ring_streams.py",), names="torch and begin_and_end",
    ),
    Mutant(
        "outputs in the buffer's order", "runtime/outputs.py", "Outputs._take",
        "self._shaped(take_all(at), value, shape)",
        "self._shaped(self._state.view(value, slot), value, shape)",
        tests=("test_ring.py",), names="torch and pans and strides",
    ),
    Mutant(
        "audit in the buffer's order", "runtime/audit.py", "audit_slot",
        "[state.window(v, slot) for v in step.inputs]",
        "[state.view(v, slot) for v in step.inputs]",
        tests=("test_ring.py",), names="torch and pans and strides",
    ),
    Mutant(
        "region of interest hides a first frame", "runtime/windows.py", "place",
        "None if whole else region", "region",
        tests=("test_ring_gate.py",), names="torch and region_of_interest", few=True,
    ),
    Mutant(
        "region of interest hides a new strip", "runtime/windows.py", "place",
        "region = region | torch.from_numpy(", "region = region & torch.from_numpy(",
        tests=("test_ring_gate.py",), names="torch and strips_are_published_whatever",
    ),
    Mutant(
        "mean over what is masked too", "ops/gate.py", "_boxes_beyond",
        "torch.where(known, total / count, 0.0)", "torch.where(known, total / 9, 0.0)",
        tests=("test_ring_gate.py",), names="can_be_compared", few=True,
    ),
    Mutant(
        "mean over what is masked in cells too", "ops/gate.py", "input_gate",
        "hot |= ~(total / count <=", "hot |= ~(total / (9 * grain * grain) <=",
        tests=("test_ring_gate.py",), names="can_be_compared",
    ),
    Mutant(
        "dilation beyond the mask", "ops/gate.py", "input_gate",
        "return _confine(_dilated(_boxes_beyond(diff, threshold, known)), mask, unseen)",
        "return _confine(_dilated(_boxes_beyond(diff, threshold, known)), None, unseen)",
        tests=("test_ring_gate.py",), names="can_be_compared",
    ),
    Mutant(
        "masked pixels of a new strip published as they are", "engines/torch_engine.py",
        "TorchEngine._publish_input",
        "new = new.where(valid.unsqueeze(-1), 0)", "pass",
        tests=("test_ring_gate.py",), names="torch and never_seen",
    ),
    Mutant(
        "native: moves of what hangs on its place", "engines/cpu/engine.py", "native_move",
        "moved[shifts.absolute] = sizes[shifts.absolute]", "pass",
        tests=("test_ring.py",), names="cpu and pans and position",
    ),
    Mutant(
        "native: foreign steps compare new strips", "engines/cpu/engine.py", "_NativeCall._unseen",
        "np.maximum(rows[:, None], cols) == UNSEEN", "np.maximum(rows[:, None], cols) < 0",
        tests=("test_ring.py",), names="cpu and published_whole and dense",
    ),
    Mutant(
        "native: ring's columns begin at 0", "native/src/kernels.h", "ring_of",
        "int(origin[0]), int(origin[1])};", "int(origin[0]), 0};",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-1x1)",
    ),
    Mutant(
        "native: ring wraps one row late", "native/src/ring.h", "seam_y",
        "seam_y(h - oy)", "seam_y(h - oy + 1)",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-1x1)", few=True,
    ),
    Mutant(
        "native: ring wraps one column late", "native/src/ring.h", "seam_x",
        "seam_x(w - ox)", "seam_x(w - ox + 1)",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-1x1)",
    ),
    Mutant(
        "native: one column behind the input's seam left out", "native/src/ring.h", "stretches",
        "if (end > seam_x) run", "if (end > seam_x + 1) run",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-1x1)",
    ),
    Mutant(
        "native: taps of a convolution across the seam", "native/src/isa/conv.h", "find_rows",
        "left < seam_x_ ? seam_x_ : in_.w", "in_.w",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-3x3)",
    ),
    Mutant(
        "native: depthwise windows across the seam", "native/src/isa/depthwise.h", "run",
        "x < ring_.seam_x ? ring_.seam_x : in_.w", "in_.w",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (depthwise)",
    ),
    Mutant(
        "native: pool turns round one place late", "native/src/isa/pool.h", "turn",
        "(count - 1) * span.step >= before", "(count - 1) * span.step > before",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (pool)",
    ),
    Mutant(
        "native: new strip on one side only", "native/src/kernels.h", "seen",
        "std::max(0, v.h - std::abs(dy))", "v.h",
        tests=("test_ring.py",), names="cpu and without_comparing", few=True,
    ),
    Mutant(
        "native: new strip compared with what lay there, short sums", "native/src/isa/finish.h",
        "place",
        "*gated = all_seen_ || seen_.has(p.y, p.x);", "*gated = true;",
        tests=("test_ring.py",), names="cpu and without_comparing",
    ),
    Mutant(
        "native: new strip compared with what lay there", "native/src/isa/finish.h", "operator",
        "const bool gated = all_seen_ || seen_.has(p.y, p.x);", "const bool gated = true;",
        tests=("test_ring_streams.py",), names="cpu and move_apart",
    ),
    Mutant(
        "native: new strip of the input compared", "native/src/frame.cpp", "mark_input",
        "mark_outside(job.seen, y, in.w, row);\n      any", "any",
        tests=("test_ring.py",), names="cpu and without_comparing",
    ),
    Mutant(
        "native: old edge kept by exact borders", "native/src/active.cpp", "moved_row",
        "if (!slot.border) return;", "return;",
        tests=("test_cpu_ring.py",), names="bit_for_bit and not networks and (conv-3x3)",
    ),
    Mutant(
        "native: lines of another step's border", "native/src/active.cpp", "moved_row",
        "slot.border + engine_.step_lines[i]", "slot.border + engine_.step_lines[0]",
        tests=("test_ring.py",), names="cpu and pans",
    ),
    Mutant(
        "native: frame looked at beyond its mask", "native/src/frame.cpp", "mark_input",
        "keep_valid(slot, y, in.w, row, rows);", "",
        tests=("test_ring_gate.py",), names="cpu and region_of_interest", few=True,
    ),
    Mutant(
        "native: mean over what is masked too", "native/src/isa/input.h", "load",
        "if (!(words_[x / 64] >> (x % 64) & 1)) flat_[x] = 0;", "continue;",
        tests=("test_ring_gate.py",), names="cpu and gated_alike",
    ),
    Mutant(
        "native: masked pixels of a new strip published as they are", "native/src/isa/input.h",
        "publish_input",
        "keep_valid(*job.slot, y, in.w, content, content + words);", "",
        tests=("test_ring_gate.py",), names="cpu and never_seen",
    ),
]  # fmt: skip
