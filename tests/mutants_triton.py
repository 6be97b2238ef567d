"""Faults of the triton engine."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "triton: a follower without filters", "engines/triton/schedule.py", "_follow",
        "return Use(leader.step, wide, owners)", "return Use(leader.step, wide, ())",
        tests=("test_schedule.py",), names="lists_hold", few=True,
    ),
    Mutant(
        "triton: a residual's changes on no list", "engines/triton/schedule.py", "_follow",
        "leader.extra.extend(extra)", "leader.extra.extend(())",
        tests=("test_schedule.py",), names="lists_hold",
    ),
    Mutant(
        "triton: footprint off by one", "engines/triton/kernels/select.py", "_any_tap",
        "at_x = x * stride_x + (j * dilation_x - pad_x)",
        "at_x = x * stride_x + (j * dilation_x - pad_x) + 1",
        tests=("test_triton.py",), names="selections_through_windows", few=True, interpreted=True,
    ),
    Mutant(
        "triton: the next row's stamps seen behind a row", "engines/triton/kernels/words.py",
        "_published",
        "own &= _first_bytes(w - column)", "pass",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: a word's neighbour not looked at", "engines/triton/kernels/words.py", "_taps",
        "| (left >> (64 - 8 * (PAD - j * DILATION)))", "",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: every other output of a stride of 2 lost", "engines/triton/kernels/words.py",
        "_published",
        "| (_even(second) << 32)", "",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: high part of an unaligned word lost", "engines/triton/kernels/words.py",
        "_word",
        "low = (low >> bits) | ((high << 8) << (56 - bits))", "low = low >> bits",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: a frame's layout taken for the one before", "engines/triton/control.py",
        "Control.is_laid_out",
        "return layout == self._layouts[turn]", "return self._layouts[turn] is not None",
        tests=("test_triton.py",), names="streams_at_tolerance_0", few=True, interpreted=True,
    ),
    Mutant(
        "triton: whole slots ignored", "engines/triton/kernels/words.py", "select_words",
        "active = tl.where(whole, some, active & some)", "active = active & some",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: whole slots ignored, pixel by pixel", "engines/triton/kernels/select.py",
        "select",
        "active = tl.where(ok, active | whole, 0)", "active = tl.where(ok, active, 0)",
        tests=("test_triton.py",), names="selections_through_windows", interpreted=True,
    ),
    Mutant(
        "triton: active pixels of followers counted wrong", "engines/triton/kernels/words.py",
        "count_stamps",
        "tl.atomic_add(counter, total,", "tl.atomic_add(counter, total + 1,",
        tests=("test_triton.py",), names="shared_lists_at_tolerance_0 and bottleneck",
        interpreted=True,
    ),
    Mutant(
        "triton: groups published without their mask", "engines/triton/kernels/shared.py",
        "publish_over",
        "tl.store(at, new, mask=mask & hit[:, None])", "tl.store(at, new, mask=mask)",
        tests=("test_triton_frames.py",), names="group_is_published and rms",
        few=True, interpreted=True,
    ),
    Mutant(
        "triton: threshold turned round", "engines/triton/kernels/shared.py", "_moved",
        "norm > limit)", "norm < limit)",
        tests=("test_triton_frames.py",), names="group_is_published and rms", interpreted=True,
    ),
    Mutant(
        "triton: stamps not written", "engines/triton/kernels/shared.py", "publish_over",
        "tl.store(stamp_ptr + pixel, (row.to(tl.int32) * now).to(tl.uint8), mask=row)", "pass",
        tests=("test_triton.py",), names="shared_lists_at_tolerance_0 and bottleneck",
        few=True, interpreted=True,
    ),
    Mutant(
        "triton: old numbers are those of a later frame", "engines/triton/report.py",
        "FrameNumbers.settle",
        "reshape(len(self._program.plan.steps) + 1, -1).copy()",
        "reshape(len(self._program.plan.steps) + 1, -1)",
        tests=("test_triton_frames.py",), names="masks_are_those", interpreted=True,
    ),
    Mutant(
        "triton: scales that come late never count", "runtime/session.py", "Session._run",
        "        thresholds.settle(state)\n        by_slot =", "        by_slot =",
        tests=("test_triton_frames.py",), names="scales_count", interpreted=True,
    ),
    Mutant(
        "triton: a phase's list cut short", "engines/triton/convolutions.py", "_longest_list",
        "frame.slots * ceil(h / down) * ceil(w / across)",
        "ceil(frame.slots * h * w / (down * across))",
        tests=("test_triton.py",), names="phases_of_an_odd", interpreted=True,
    ),
    Mutant(
        "triton: old stamps stay", "engines/triton/memory.py", "Memory.tick",
        "self._stamp_bytes.zero_()", "pass",
        tests=("test_triton_frames.py",), names="stamps_begin_anew", few=True, interpreted=True,
    ),
    Mutant(
        "triton: operands of the residual exchanged", "engines/triton/kernels/conv.py",
        "finish",
        "acc = combine(other.to(tl.float32), acc, JOIN, ALPHA)",
        "acc = combine(acc, other.to(tl.float32), JOIN, ALPHA)",
        tests=("test_triton.py",), names="test_op and (sub-from-value-fp32)", interpreted=True,
    ),
    Mutant(
        "triton: a part of a short sum left out", "engines/triton/kernels/conv.py", "_walk",
        "for other_part in tl.static_range(1, PARTS):",
        "for other_part in tl.static_range(1, PARTS - 1):",
        tests=("test_triton.py",), names="lists_of_any_length", few=True, interpreted=True,
    ),
    Mutant(
        "triton: a part of a long sum left out", "engines/triton/kernels/conv.py", "_multiply",
        "if (step + 1 == end_step) | ((step + 1) % PART_STEPS == 0):",
        "if (step + 1) % PART_STEPS == 0:",
        tests=("test_triton.py",), names="lists_of_any_length", interpreted=True,
    ),
    Mutant(
        "triton: input gate without dilation", "engines/triton/kernels/input_gate.py",
        "publish_input",
        "reach = (tl.load(threshold_ptr + slot) != 0.0)",
        "reach = (tl.load(threshold_ptr + slot) < 0.0)",
        tests=("test_triton_frames.py",), names="input_gate_is", few=True, interpreted=True,
    ),
    Mutant(
        "triton: strong changes in a cell overlooked", "engines/triton/kernels/cells.py",
        "find_cells",
        "(hot | (fine == now)) & ok", "hot & ok",
        tests=("test_triton_frames.py",), names="input_gate_is", interpreted=True,
    ),
    Mutant(
        "triton: forced sets found instead", "engines/triton/kernels/words.py", "select_words",
        "active = _word(forced_ptr, at, h * w, ok, ALIGNED)",
        "active |= _word(forced_ptr, at, h * w, ok, ALIGNED)",
        tests=("test_triton.py",), names="forced_sets and downsampling", few=True, interpreted=True,
    ),
    Mutant(
        "triton: ring's columns begin at 0", "engines/triton/kernels/shared.py", "on_ring",
        "x += tl.load(ring_ptr + slot * 2 + 1)", "x += 0",
        tests=("test_triton_frames.py",), names="windows_that_move", few=True, interpreted=True,
    ),
    Mutant(
        "triton: ring wraps one row late", "engines/triton/kernels/shared.py", "on_ring",
        "y = tl.where(y >= h, y - h, y)", "y = tl.where(y > h, y - h, y)",
        tests=("test_triton_frames.py",), names="windows_that_move", interpreted=True,
    ),
    Mutant(
        "triton: new strip compared with what lay there", "engines/triton/kernels/shared.py",
        "row_facts",
        "limit = tl.where(level == IS_UNSEEN, NO_LIMIT, limit)", "pass",
        tests=("test_triton_frames.py",), names="new_strips", few=True, interpreted=True,
    ),
    Mutant(
        "triton: new strip of the input compared", "engines/triton/kernels/input_gate.py",
        "_standing",
        "return valid, (level == IS_UNSEEN).to(tl.int32)", "return valid, level * 0",
        tests=("test_triton_frames.py",), names="new_strips", interpreted=True,
    ),
    Mutant(
        "triton: rings of the frame before", "engines/triton/windows.py", "Windows.send",
        "state.rings.transpose(1, 0, 2)", "rings.view(np.int32).reshape(values, slots, 2)",
        tests=("test_triton_frames.py",), names="windows_that_move", interpreted=True,
    ),
]  # fmt: skip
