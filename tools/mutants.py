"""Plant one fault at a time in a copy of the sources; each must fail a test.

    python tools/mutants.py [NAME ...]

A mutant that no test notices, or that no longer applies to the sources, is an error. Later parts of
the project add their faults to `MUTANTS`. Faults of the native engine are compiled, without much
optimisation, into a library that takes the place of the copy's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE, TRITON = "engines/torch_engine.py", "engines/triton/"
PYTEST_TESTS_FAILED = 1
# its tests run in Triton's interpreter
INTERPRETED = "tests/test_triton.py"
LIBRARY = "src/torchdelta/engines/cpu/libtorchdelta_native.so"
# a native fault may keep the engine waiting for ever
TIMEOUT_S = 300
# what CMake left in native/inplace holds absolute paths
IGNORED = shutil.ignore_patterns("__pycache__", "CMakeCache.txt", "CMakeFiles", ".ninja*", ".cmake")


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` `old` becomes `new`; `tests` must notice.

    file: below src/torchdelta, or from native/ on
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def path(self) -> str:
        """Where the file lies in the repository."""
        return self.file if self.native else f"src/torchdelta/{self.file}"

    @property
    def native(self) -> bool:
        """Whether the library must be built again."""
        return self.file.startswith("native/")


def native_ops(cases: str) -> tuple[str, ...]:
    """Name the tests of op cases on the cpu engine."""
    return "tests/test_ops.py", "-k", f"test_op and cpu and ({cases})"


def triton_ops(cases: str) -> tuple[str, ...]:
    """Name the tests of op cases in Triton's interpreter."""
    return INTERPRETED, "-k", f"test_op and ({cases})"


def triton_tests(names: str) -> tuple[str, ...]:
    """Name other tests there."""
    return INTERPRETED, "-k", names


def ring_tests(names: str, engine: str = "torch") -> tuple[str, ...]:
    """Name tests of moving windows on an engine."""
    return "tests/test_ring.py", "-k", f"{engine} and {names}"


def moving_tests(names: str) -> tuple[str, ...]:
    """Name tests of sessions that follow cameras, on the torch engine where they name one."""
    return "tests/test_moving.py", "-k", f"{names} and not cpu"


def motion_tests(names: str) -> tuple[str, ...]:
    """Name tests of estimators, placement and warps."""
    return "tests/test_motion.py", "-k", names


def native_warps(names: str) -> tuple[str, ...]:
    """Name the tests of the native warp."""
    return "tests/test_motion.py", "-k", f"native and {names}"


def native_rings(cases: str) -> tuple[str, ...]:
    """Name the walks of op cases on the cpu engine."""
    return "tests/test_cpu_ring.py", "-k", f"bit_for_bit and not networks and ({cases})"


def native_tests(names: str) -> tuple[str, ...]:
    """Name tests of the cpu engine alone."""
    return "tests/test_cpu.py", "-k", names


CONV, PACK = "native/src/isa/conv.h", "native/src/isa/pack.h"
FINISH, KERNELS, RING = "native/src/isa/finish.h", "native/src/kernels.h", "native/src/ring.h"
WARP, FRAME = "native/src/isa/warp.h", "native/src/frame.cpp"
POINTWISE, ELEMENTWISE = "native/src/isa/pointwise.h", "native/src/isa/elementwise.h"
CPU_ENGINE, BIND = "engines/cpu/engine.py", "engines/cpu/bind.py"
OPS = ("tests/test_ops.py", "-k", "test_op and (conv-3x3 or conv-1x1)")
WINOGRAD, TILES = "native/src/isa/winograd.h", native_tests("test_tiles")
MUTANTS = [
    Mutant("footprint one pixel short", "ops/base.py",
           "for t in range(self.kernel):\n                line",
           "for t in range(max(1, self.kernel - 1)):\n                line",
           ("tests/test_ops.py", "-k", "footprint and conv-3x3")),
    Mutant("publish skipped", ENGINE,
           "put_rows(stored, where, rows)", "pass", OPS),
    Mutant("mask not cleared", ENGINE,
           "mask = torch.zeros(active.numel()", "mask = torch.ones(active.numel()",
           ("tests/test_session.py", "-k", "change_masks")),
    Mutant("join without reset", "runtime/session.py",
           "StreamStats(self.plan), tolerance, reason)", "StreamStats(self.plan), tolerance, None)",
           ("tests/test_session.py", "-k", "taken_over or join")),
    Mutant("threshold ignored", ENGINE,
           "value_gate(rows, old, gate.threshold,", "value_gate(rows, old, 0.0,",
           ("tests/test_gate.py", "-k", "groups_that_moved")),
    Mutant("lowered to 0 without computing anew", "runtime/session.py",
           "if refresh or tolerance == 0 < known.tolerance:", "if refresh:",
           ("tests/test_tolerance.py", "-k", "lowered and torch")),
    Mutant("audit by the threshold in force", "runtime/session.py",
           "largest = canvas.thresholds.largest[known.slot]",
           "largest = canvas.state.thresholds[known.slot]",
           ("tests/test_tolerance.py", "-k", "higher and torch")),
    Mutant("native: a slot in another's packing", "native/src/frame.cpp",
           "return sets_.wanted(i, s) && engine_.packed_of(i, call_.slots[s].exact) == packed;",
           "return sets_.wanted(i, s) && (packed || engine_.packed_of(i, true) == packed);",
           ("tests/test_tolerance.py", "-k", "different and cpu")),
    Mutant("a groups' count is a pixels' count", ENGINE,
           "len(hit), int(publish.sum())", "len(hit), len(hit)", ("tests/test_published.py",)),
    Mutant("threshold far too large", "runtime/thresholds.py",
           "= tolerance * self._multiplier[v.index] * known",
           "= 3 * tolerance * self._multiplier[v.index] * known",
           ("tests/test_gate.py", "-k", "multiplier")),
    Mutant("stale residual", ENGINE,
           "zip(step.inputs, step.footprints, strict=True)",
           "zip(step.inputs[: step.arity], step.footprints, strict=False)",
           ("tests/test_networks.py", "-k", "resnet18")),
    Mutant("wrong cat offset", "runtime/state.py",
           "buffer.narrow(2, v.offset, v.channels)",
           "buffer.narrow(2, max(0, v.offset - 1), v.channels)",
           ("tests/test_ops.py", "-k", "test_op and cat")),
    Mutant("wrong stride offset", ENGINE,
           "first = tile * side * step // op.pitch[axis] + offset",
           "first = tile * side * step // op.pitch[axis] + offset + step - 1",
           ("tests/test_ops.py", "-k", "test_op and s2")),
    Mutant("bias dropped", "ops/conv.py",
           'F.linear(x, weights["weight"].flatten(1), weights.get("bias"))',
           'F.linear(x, weights["weight"].flatten(1))', OPS),
    Mutant("first-frame flag shared by streams", "runtime/session.py",
           "for name in full:\n            streams[name].full = None",
           "for each in self._streams.values():\n            each.full = None",
           ("tests/test_session.py", "-k", "flag")),
    Mutant("NaN does not publish", "ops/gate.py",
           "return ~(group_norm(new.float() - stored.float(), norm, group) <= threshold)",
           "return group_norm(new.float() - stored.float(), norm, group) > threshold",
           ("tests/test_gate.py", "-k", "nan")),
    Mutant("padding of a max pool read as 0", "ops/pool.py",
           'return float("-inf")\n\n    def full', "return 0.0\n\n    def full",
           ("tests/test_ops.py", "-k", "max_pools")),
    Mutant("average over the wrong count", "ops/pool.py",
           "return (begin + k).clamp(max=n_in) - begin.clamp(min=0)",
           "return (begin + k).clamp(max=n_in) - begin",
           ("tests/test_ops.py", "-k", "avgpool-nopad")),
    Mutant("input gate without dilation", "ops/gate.py",
           "return Axis(w, w, 3, pad=1).spread(Axis(h, h, 3, pad=1).spread(hot, 0), 1)",
           "return hot",
           ("tests/test_gate.py", "-k", "dilates")),
    Mutant("refresh keeps old scales", "runtime/session.py",
           "thresholds.start(state, stream.slot, stream.tolerance)\n", "pass\n",
           ("tests/test_gate.py", "-k", "black_first")),
    Mutant("refused frame takes a slot", "runtime/session.py",
           "newcomers = [name for name in ready if", "newcomers = [name for name in frames if",
           ("tests/test_session.py", "-k", "bad_first")),
    Mutant("slots not aligned alike", "runtime/state.py",
           "padded = [-(-size // unit) * unit for size in per_slot]", "padded = per_slot",
           ("tests/test_session.py", "-k", "aligned_alike")),
    Mutant("native: padding on the wrong side", PACK,
           "taps.push_back({ky * raw.dy - raw.pad_y, kx * raw.dx - raw.pad_x});",
           "taps.push_back({ky * raw.dy - raw.pad_y, kx * raw.dx + raw.pad_x});",
           native_ops("conv-3x3")),
    Mutant("native: bias dropped", PACK,
           "for (int n = 0; raw.bias && n < panel.n; ++n) p.bias",
           "for (int n = 0; raw.bias && n < 0; ++n) p.bias", native_ops("conv-3x3")),
    Mutant("native: border not zero", PACK,
           "p.zeros.assign(size_t(raw.c_in) * raw.groups + 2, from_float<T>(0));",
           "p.zeros.assign(size_t(raw.c_in) * raw.groups + 2, from_float<T>(1));",
           native_ops("conv-3x3")),
    Mutant("native: stride offset", CONV,
           "return {p.y * p_.stride_y, p.x * p_.stride_x};",
           "return {p.y * p_.stride_y, p.x * p_.stride_x + p_.stride_x - 1};",
           native_ops("conv-3x3-s2")),
    Mutant("native: phase of the transposed convolution", PACK,
           "const int x = rx + raw.pad_x - (raw.kw",
           "const int x = rx + 1 + raw.pad_x - (raw.kw", native_ops("deconv-4x4")),
    Mutant("native: chunk begins one late", PACK,
           "out.push_back({s, 1, k, end, weights});",
           "out.push_back({s, 1, k ? k + 1 : k, end, weights});",
           native_ops("conv-1x1-1100 or conv-3x3-370")),
    Mutant("native: a tile's lower pixels left out", "native/src/masks.cpp",
           "unsigned(below[k] >> x & 3) << 2", "unsigned(row[k] >> x & 3) << 2", TILES),
    Mutant("native: tiles listed by their first column", "native/src/masks.cpp",
           "tiles = (any | any >> 1) & kFirst", "tiles = any & kFirst", TILES),
    Mutant("native: last row of an odd map in no tile", "native/src/frame.cpp",
           "down = (v.h + side - 1) / side", "down = v.h / side", TILES),
    Mutant("native: sign in a tile's inputs", WINOGRAD,
           "vsub(rows[y][2], rows[y][1])", "vsub(rows[y][1], rows[y][2])", TILES),
    Mutant("native: sign in a tile's outputs", WINOGRAD,
           "vsub(vsub(rows[1][x], rows[2][x]), rows[3][x])",
           "vadd(vsub(rows[1][x], rows[2][x]), rows[3][x])", TILES),
    Mutant("native: half of a tile's weights", WINOGRAD,
           "to[y * kPatch + 1][i] = 0.5f", "to[y * kPatch + 1][i] = 0.25f", TILES),
    Mutant("native: second chunk of a tile begins anew", WINOGRAD,
           "k ? nullptr : kZeros", "kZeros", TILES),
    Mutant("native: a tile's bias left out", WINOGRAD,
           "vload(conv_.bias.data() + panel.bias + v * kWidth), rows[0] + c)",
           "vzero(), rows[0] + c)", TILES),
    Mutant("native: tiles whatever the tolerance", "runtime/thresholds.py",
           "state.exact[slot] = tolerance == 0", "state.exact[slot] = False", TILES),
    Mutant("native: neighbours taken together across a gap", "native/src/masks.cpp",
           "uint16_t(slot), uint16_t(end - x)};", "uint16_t(slot), uint16_t(end - x + 1)};",
           native_ops("depthwise")),
    Mutant("native: list one short", "native/src/masks.cpp",
           "for (int x = begin; x < end; ++x)\n      out[count++]",
           "for (int x = begin; x < end - 1; ++x)\n      out[count++]", native_ops("conv-3x3")),
    Mutant("native: active pixels beyond the edge", "native/src/masks.cpp",
           "axis.pad - t * axis.dilation);\n    out[out_words - 1] &= tail_mask(axis.n_out);",
           "axis.pad - t * axis.dilation);", native_ops("conv-3x3")),
    Mutant("native: residual skipped", FINISH, "if (other) {", "if (other && tail < 0) {",
           native_ops("residual")),
    Mutant("native: rms over a whole group", FINISH,
           "square * float(n)", "square * float(kGroup)",
           ("tests/test_cpu.py", "-k", "from_its_threshold_on and cpu")),
    Mutant("native: change mask overwritten", FINISH,
           "__atomic_fetch_or(word_, bits_, __ATOMIC_RELAXED);",
           "__atomic_store_n(word_, bits_, __ATOMIC_RELAXED);",
           ("tests/test_cpu.py", "-k", "bit_for_bit_in_networks")),
    Mutant("native: change not told", FINISH,
           "__atomic_store_n(job_.any + slot_, uint8_t(1), __ATOMIC_RELAXED);", "",
           ("tests/test_cpu.py", "-k", "bit_for_bit_in_networks")),
    Mutant("native: last row of the input stays", "native/src/isa/input.h",
           "for (int y = y0; y < y1; ++y) {\n    const uint64_t* const changed",
           "for (int y = y0; y + 1 < y1; ++y) {\n    const uint64_t* const changed",
           native_ops("conv-1x1")),
    Mutant("native: input dilated within words only", "native/src/masks.cpp",
           "rows[k] << 1 | left | rows[k] >> 1", "rows[k] << 1 | rows[k] >> 1",
           ("tests/test_cpu.py", "-k", "input_gate_is_the_torch_engines")),
    Mutant("a place of weight 0 is blended", "ops/resize.py",
           "hi = np.where(part > 0, lo + 1, lo)", "hi = np.minimum(lo + 1, n - 1)",
           ("tests/test_ops.py", "-k", "weight_0 or footprint and bilinear")),
    Mutant("native: strong changes in a cell overlooked", "native/src/masks.cpp",
           "own.fine || ", "",
           ("tests/test_cpu.py", "-k", "input_gate_is_the_torch_engines")),
    Mutant("native: cells of a window's unseen pixels are hot", "native/src/masks.cpp",
           "own.known && ", "",
           ("tests/test_ring.py", "-k", "gated_alike")),
    Mutant("native: cells count the rows of those above", "native/src/isa/input.h",
           "first ? vload(flat_ + x) :", "y == 0 ? vload(flat_ + x) :",
           ("tests/test_cpu.py", "-k", "input_gate_is_the_torch_engines")),
    Mutant("native: every pixel of a window's cells counts", "native/src/isa/input.h",
           ": count_bits(words_, x0, x1);", ": x1 - x0;",
           ("tests/test_ring.py", "-k", "gated_alike")),
    Mutant("a cell's neighbours are not published", "ops/gate.py",
           "wide = _dilated(hot).repeat_interleave", "wide = hot.repeat_interleave",
           ("tests/test_gate.py", "-k", "in_cells")),
    Mutant("native: last rows of the input left out", "native/src/frame.cpp",
           "if (block >= each * call_.n_slots) return;",
           "if (block >= each * call_.n_slots - 1) return;", native_ops("conv-1x1")),
    Mutant("native: group of a global pool left out", "native/src/isa/pixels.h",
           "group < 0 ? 0 : group * kGroup", "0", native_ops("global-avg")),
    Mutant("native: change mask in another's place", "native/src/frame.cpp",
           "slot.changed + engine_.reported_words[n], mask", "slot.changed, mask",
           ("tests/test_cpu.py", "-k", "masks_of_several_outputs")),
    Mutant("native: average over the padding too", "native/src/isa/pool.h",
           "if (adaptive || !with_pad) return span(o).count;",
           "if (adaptive) return span(o).count;", native_ops("avgpool")),
    Mutant("native: slopes of the first group for all", ELEMENTWISE,
           "slope.empty() ? nullptr : slope.data() + c0, row, n);",
           "slope.empty() ? nullptr : slope.data(), row, n);", native_ops("prelu-70")),
    Mutant("native: fused slopes of the first group for all", FINISH,
           "part.slope.data() + (part.slope.size() > 1 ? c0 : 0);", "part.slope.data();",
           native_ops("prelu-conv")),
    Mutant("native: logarithm with a wrong digit", POINTWISE, "0x1.99968ep-2f", "0x1.98968ep-2f",
           native_tests("number_by_number")),
    Mutant("native: nothing clamped from below", POINTWISE,
           "vmin(vset(high), vmax(vset(low), x))", "vmin(vset(high), x)",
           native_ops("functions-0")),
    Mutant("native: softmax over a whole vector", ELEMENTWISE,
           "all + padded, -INFINITY);", "all + padded, 0.0f);", native_ops("softmax")),
    Mutant("native: one channel for all is not repeated", ELEMENTWISE,
           "single(c == 1 && channels > 1)", "single(channels < 0)", native_ops("mul-channel")),
    Mutant("native: shuffled pixels transposed", "native/src/isa/move.h",
           "p.y % factor * factor + p.x % factor;", "p.x % factor * factor + p.y % factor;",
           native_ops("pixel-shuffle")),
    Mutant("native: floor rounds up on AVX2", "native/src/isa/simd.h",
           "_mm256_round_ps(a.v, 0x09)", "_mm256_round_ps(a.v, 0x0A)",
           native_ops("functions-1 and avx2")),
    Mutant("native: odd last channel left out in bf16", "native/src/isa/multiply.h",
           "if (k == k1) continue;", "continue;",
           ("tests/test_ops.py", "-k", "test_op_half and cpu and conv")),
    Mutant("native: sides of a fused function exchanged", "native/src/program.cpp",
           "part.first = in.flag();", "part.first = !in.flag();", native_ops("sub-from-value")),
    Mutant("native: forced pixels are compared", FRAME,
           "sets_.forced(i, 0) != nullptr,", "false,",
           ("tests/test_bench.py", "-k", "forced_sets_are_used and cpu")),
    Mutant("native: one thread whatever the call says", FRAME,
           "const int threads = std::max(1, call_.threads);\n    if",
           "const int threads = 1;\n    if",
           native_tests("shares_the_openmp")),
    Mutant("native: what a foreign step published is not told", FRAME,
           "space_.any_at(step.output, s) = published > 0;", "",
           native_tests("foreign_steps_run")),
    Mutant("native: memory that ran out is not told", FRAME,
           "if (failed_) return kNoMemory;", "", native_tests("memory_that")),
    Mutant("native: a warp without memory is not told", "native/src/warp.cpp",
           "if (failed) throw std::bad_alloc();", "", native_tests("memory_that")),
    Mutant("native: very wide masks begin anew", "native/src/masks.cpp",
           "axis.pad - t * axis.dilation - 128 * from);", "axis.pad - t * axis.dilation);",
           native_tests("very_wide")),
    Mutant("the interpreter's lock is kept during a frame", BIND,
           "lib = ctypes.CDLL(str(path))", "lib = ctypes.PyDLL(str(path))",
           native_tests("other_python")),
    Mutant("one thread whatever PyTorch has", CPU_ENGINE,
           "threads=torch.get_num_threads(),", "threads=1,", native_tests("shares_the_openmp")),
    Mutant("an error from within is of no thread", CPU_ENGINE,
           "if native.error is not None:\n            raise native.error", "",
           native_tests("within or foreign_steps_run")),
    Mutant("PyTorch's weights kept beside the packed ones", CPU_ENGINE,
           "only=sorted(self._foreign)", "only=None", native_tests("scratch_bytes")),
    Mutant("first OpenMP runtime by name", BIND,
           "runtime = pytorchs_openmp() or next", "runtime = next",
           native_tests("runtime_is_taken")),
    Mutant("wrong instruction set passes by", "engines/__init__.py",
           "if wrong:\n        raise EngineError(wrong)", "pass",
           native_tests("unknown_instruction")),
    Mutant("triton: a follower without filters", TRITON + "schedule.py",
           "return Use(leader.step, wide, owners)", "return Use(leader.step, wide, ())",
           ("tests/test_schedule.py", "-k", "lists_hold")),
    Mutant("triton: a residual's changes on no list", TRITON + "schedule.py",
           "leader.extra.extend(extra)", "leader.extra.extend(())",
           ("tests/test_schedule.py", "-k", "lists_hold")),
    Mutant("triton: footprint off by one", TRITON + "kernels/select.py",
           "at_x = x * stride_x + (j * dilation_x - pad_x)",
           "at_x = x * stride_x + (j * dilation_x - pad_x) + 1",
           triton_tests("selections_through_windows")),
    Mutant("triton: the next row's stamps seen behind a row", TRITON + "kernels/words.py",
           "own &= _first_bytes(w - column)", "pass",
           triton_tests("selections_through_windows")),
    Mutant("triton: a word's neighbour not looked at", TRITON + "kernels/words.py",
           "| (left >> (64 - 8 * (PAD - j * DILATION)))", "",
           triton_tests("selections_through_windows")),
    Mutant("triton: every other output of a stride of 2 lost", TRITON + "kernels/words.py",
           "| (_even(second) << 32)", "", triton_tests("selections_through_windows")),
    Mutant("triton: high part of an unaligned word lost", TRITON + "kernels/words.py",
           "low = (low >> bits) | ((high << 8) << (56 - bits))", "low = low >> bits",
           triton_tests("selections_through_windows")),
    Mutant("triton: a frame's layout taken for the one before", TRITON + "control.py",
           "return layout == self._layouts[turn]", "return self._layouts[turn] is not None",
           triton_tests("streams_at_tolerance_0")),
    Mutant("triton: whole slots ignored", TRITON + "kernels/words.py",
           "active = tl.where(whole, some, active & some)", "active = active & some",
           triton_tests("selections_through_windows")),
    Mutant("triton: whole slots ignored, pixel by pixel", TRITON + "kernels/select.py",
           "active = tl.where(ok, active | whole, 0)", "active = tl.where(ok, active, 0)",
           triton_tests("selections_through_windows")),
    Mutant("triton: active pixels of followers counted wrong", TRITON + "kernels/words.py",
           "tl.atomic_add(counter, total,", "tl.atomic_add(counter, total + 1,",
           triton_tests("shared_lists_at_tolerance_0 and bottleneck")),
    Mutant("triton: groups published without their mask", TRITON + "kernels/shared.py",
           "tl.store(at, new, mask=mask & hit[:, None])", "tl.store(at, new, mask=mask)",
           triton_tests("group_is_published and rms")),
    Mutant("triton: threshold turned round", TRITON + "kernels/shared.py",
           "norm > limit)", "norm < limit)", triton_tests("group_is_published and rms")),
    Mutant("triton: stamps not written", TRITON + "kernels/shared.py",
           "tl.store(stamp_ptr + pixel, (row.to(tl.int32) * now).to(tl.uint8), mask=row)", "pass",
           triton_tests("shared_lists_at_tolerance_0 and bottleneck")),
    Mutant("triton: old numbers are those of a later frame", TRITON + "report.py",
           "reshape(len(self._engine.plan.steps) + 1, -1).copy()",
           "reshape(len(self._engine.plan.steps) + 1, -1)", triton_tests("masks_are_those")),
    Mutant("triton: scales that come late never count", "runtime/session.py",
           "        thresholds.settle(state)\n        by_slot =", "        by_slot =",
           triton_tests("scales_count")),
    Mutant("triton: a phase's list cut short", TRITON + "conv.py",
           "frame.slots * ceil(h / down) * ceil(w / across)",
           "ceil(frame.slots * h * w / (down * across))", triton_tests("phases_of_an_odd")),
    Mutant("triton: old stamps stay", TRITON + "memory.py",
           "self._stamp_bytes.zero_()", "pass", triton_tests("stamps_begin_anew")),
    Mutant("triton: operands of the residual exchanged", TRITON + "kernels/conv.py",
           "acc = combine(other.to(tl.float32), acc, JOIN, ALPHA)",
           "acc = combine(acc, other.to(tl.float32), JOIN, ALPHA)",
           triton_ops("sub-from-value-fp32")),
    Mutant("triton: a part of a short sum left out", TRITON + "kernels/conv.py",
           "for other_part in tl.static_range(1, PARTS):",
           "for other_part in tl.static_range(1, PARTS - 1):",
           triton_tests("lists_of_any_length")),
    Mutant("triton: a part of a long sum left out", TRITON + "kernels/conv.py",
           "if (step + 1 == end_step) | ((step + 1) % PART_STEPS == 0):",
           "if (step + 1) % PART_STEPS == 0:",
           triton_tests("lists_of_any_length")),
    Mutant("triton: input gate without dilation", TRITON + "kernels/gate.py",
           "reach = (tl.load(threshold_ptr + slot) != 0.0)",
           "reach = (tl.load(threshold_ptr + slot) < 0.0)",
           triton_tests("input_gate_is")),
    Mutant("triton: strong changes in a cell overlooked", TRITON + "kernels/cells.py",
           "(hot | (fine == now)) & ok", "hot & ok", triton_tests("input_gate_is")),
    Mutant("triton: forced sets found instead", TRITON + "kernels/words.py",
           "active = _word(forced_ptr, at, h * w, ok, ALIGNED)",
           "active |= _word(forced_ptr, at, h * w, ok, ALIGNED)",
           triton_tests("forced_sets and downsampling")),
    Mutant("triton: ring's columns begin at 0", TRITON + "kernels/shared.py",
           "x += tl.load(ring_ptr + slot * 2 + 1)", "x += 0", triton_tests("windows_that_move")),
    Mutant("triton: ring wraps one row late", TRITON + "kernels/shared.py",
           "y = tl.where(y >= h, y - h, y)", "y = tl.where(y > h, y - h, y)",
           triton_tests("windows_that_move")),
    Mutant("triton: new strip compared with what lay there", TRITON + "kernels/shared.py",
           "limit = tl.where(level == IS_UNSEEN, NO_LIMIT, limit)", "pass",
           triton_tests("new_strips")),
    Mutant("triton: new strip of the input compared", TRITON + "kernels/gate.py",
           "return valid, (level == IS_UNSEEN).to(tl.int32)", "return valid, level * 0",
           triton_tests("new_strips")),
    Mutant("triton: rings of the frame before", TRITON + "windows.py",
           "state.rings.transpose(1, 0, 2)", "rings.view(np.int32).reshape(values, slots, 2)",
           triton_tests("windows_that_move")),
    Mutant("ring begins elsewhere", "runtime/state.py",
           "return Ring(view, (y, x))", "return Ring(view, (x, y))",
           ring_tests("footprint_of_the_new_strip")),
    Mutant("ring does not wrap", "ops/base.py",
           "return (index // w + self.origin[0]) % h * w",
           "return (index // w + self.origin[0]).clamp(max=h - 1) * w",
           ring_tests("pans and strides")),
    Mutant("ring wraps one pixel late", "ops/base.py",
           "+ (index % w + self.origin[1]) % w", "+ (index % w + self.origin[1]) % (w + 1) % w",
           ring_tests("pans and strides")),
    Mutant("ring of another stream's window", "runtime/state.py",
           "y, x = self.rings[slot, value].tolist()", "y, x = self.rings[0, value].tolist()",
           ring_tests("move_apart and strides")),
    Mutant("new strip compared with what lay there", ENGINE,
           "return level > KEPT, level == UNSEEN", "return level > KEPT, level > UNSEEN",
           ring_tests("without_comparing")),
    Mutant("new strip on the wrong side", "plan/shift.py",
           "before = np.arange(n) + move", "before = np.arange(n) - move",
           ring_tests("footprint_of_the_new_strip")),
    Mutant("old edge kept by exact borders", "plan/shift.py",
           "line |= _crossing(reads, move, int(k[source, axis]))", "pass",
           ring_tests("pans and strides")),
    Mutant("half a buffer turns", "plan/shift.py",
           "mixed = {buffer for buffer, strides in alone.items() if len(strides) > 1}",
           "mixed = set[int]()", ring_tests("pans and beside")),
    Mutant("resize with align_corners follows the window", "ops/resize.py",
           "if self.align_corners:\n            return", "if not self:\n            return",
           ring_tests("pans and corners")),
    Mutant("reset leaves the window where it was", "runtime/session.py",
           "known.tolerance, \"reset\", known.slot\n            )\n",
           "known.tolerance, \"reset\", known.slot\n            )\n"
           "            self._streams[stream].rest = known.rest\n",
           ring_tests("begin_and_end")),
    Mutant("outputs in the buffer's order", "runtime/outputs.py",
           "self._shaped(take_all(at), value, shape)",
           "self._shaped(self._state.view(value, slot), value, shape)",
           ring_tests("pans and strides")),
    Mutant("audit in the buffer's order", "runtime/audit.py",
           "[state.window(v, slot) for v in step.inputs]",
           "[state.view(v, slot) for v in step.inputs]", ring_tests("pans and strides")),
    Mutant("region of interest hides a first frame", "runtime/windows.py",
           "None if whole else region", "region", ring_tests("region_of_interest")),
    Mutant("region of interest hides a new strip", "runtime/windows.py",
           "region = region | torch.from_numpy(", "region = region & torch.from_numpy(",
           ring_tests("strips_are_published_whatever")),
    Mutant("mean over what is masked too", "ops/gate.py",
           "torch.where(known, total / count, 0.0)", "torch.where(known, total / 9, 0.0)",
           ("tests/test_ring.py", "-k", "can_be_compared")),
    Mutant("mean over what is masked in cells too", "ops/gate.py",
           "hot |= ~(total / count <=", "hot |= ~(total / (9 * grain * grain) <=",
           ("tests/test_ring.py", "-k", "can_be_compared")),
    Mutant("dilation beyond the mask", "ops/gate.py",
           "return _confine(_dilated(_boxes_beyond(diff, threshold, known)), mask, unseen)",
           "return _confine(_dilated(_boxes_beyond(diff, threshold, known)), None, unseen)",
           ("tests/test_ring.py", "-k", "can_be_compared")),
    Mutant("masked pixels of a new strip published as they are", ENGINE,
           "new = new.where(valid.unsqueeze(-1), 0)", "pass",
           ring_tests("never_seen")),
    Mutant("native: moves of what hangs on its place", "engines/cpu/engine.py",
           "moved[shifts.absolute] = sizes[shifts.absolute]", "pass",
           ring_tests("pans and position", "cpu")),
    Mutant("native: foreign steps compare new strips", "engines/cpu/engine.py",
           "np.maximum(rows[:, None], cols) == UNSEEN", "np.maximum(rows[:, None], cols) < 0",
           ring_tests("published_whole and dense", "cpu")),
    Mutant("native: ring's columns begin at 0", KERNELS,
           "int(origin[0]), int(origin[1])};", "int(origin[0]), 0};", native_rings("conv-1x1")),
    Mutant("native: ring wraps one row late", RING, "seam_y(h - oy)", "seam_y(h - oy + 1)",
           native_rings("conv-1x1")),
    Mutant("native: ring wraps one column late", RING, "seam_x(w - ox)", "seam_x(w - ox + 1)",
           native_rings("conv-1x1")),
    Mutant("native: one column behind the input's seam left out", RING,
           "if (end > seam_x) run", "if (end > seam_x + 1) run", native_rings("conv-1x1")),
    Mutant("native: taps of a convolution across the seam", CONV,
           "left < seam_x_ ? seam_x_ : in_.w", "in_.w", native_rings("conv-3x3")),
    Mutant("native: depthwise windows across the seam", "native/src/isa/depthwise.h",
           "x < ring_.seam_x ? ring_.seam_x : in_.w", "in_.w", native_rings("depthwise")),
    Mutant("native: pool turns round one place late", "native/src/isa/pool.h",
           "(count - 1) * span.step >= before", "(count - 1) * span.step > before",
           native_rings("pool")),
    Mutant("native: new strip on one side only", KERNELS,
           "std::max(0, v.h - std::abs(dy))", "v.h", ring_tests("without_comparing", "cpu")),
    Mutant("native: new strip compared with what lay there, short sums", FINISH,
           "*gated = all_seen_ || seen_.has(p.y, p.x);", "*gated = true;",
           ring_tests("without_comparing", "cpu")),
    Mutant("native: new strip compared with what lay there", FINISH,
           "const bool gated = all_seen_ || seen_.has(p.y, p.x);", "const bool gated = true;",
           ring_tests("move_apart", "cpu")),
    Mutant("native: new strip of the input compared", "native/src/frame.cpp",
           "mark_outside(job.seen, y, in.w, row);\n      any", "any",
           ring_tests("without_comparing", "cpu")),
    Mutant("native: old edge kept by exact borders", "native/src/active.cpp",
           "if (!slot.border) return;", "return;", native_rings("conv-3x3")),
    Mutant("native: lines of another step's border", "native/src/active.cpp",
           "slot.border + engine_.step_lines[i]", "slot.border + engine_.step_lines[0]",
           ring_tests("pans", "cpu")),
    Mutant("native: frame looked at beyond its mask", "native/src/frame.cpp",
           "keep_valid(slot, y, in.w, row, rows);", "",
           ring_tests("region_of_interest", "cpu")),
    Mutant("native: mean over what is masked too", "native/src/isa/input.h",
           "if (!(words_[x / 64] >> (x % 64) & 1)) flat_[x] = 0;", "continue;",
           ring_tests("gated_alike", "cpu")),
    Mutant("native: masked pixels of a new strip published as they are", "native/src/isa/input.h",
           "keep_valid(*job.slot, y, in.w, content, content + words);", "",
           ring_tests("never_seen", "cpu")),
    Mutant("motion: vectors point the other way", "video/reader.py",
           'table["motion_x"] / scale, table["motion_y"]',
           '-table["motion_x"] / scale, -table["motion_y"]', motion_tests("decoder_gives")),
    Mutant("motion: vectors of another scene believed", "motion/codec.py",
           "LEAST_FOREIGN = 10.0", "LEAST_FOREIGN = 1e9", motion_tests("another_scene")),
    Mutant("motion: nobody says that corners were followed", "motion/codec.py",
           "fallback=motion.reason", "fallback=None", motion_tests("fall_back")),
    Mutant("motion: cells that did not fit are looked at", "motion/features.py",
           "fitted = self._unfit[cells] < LEAST_KEPT", "fitted = self._unfit[cells] < 2",
           motion_tests("left_out")),
    Mutant("motion: chain never corrected", "motion/align.py",
           "if self._since_registered < REGISTER_EVERY:", "if True:",
           motion_tests("long_pan and features")),
    Mutant("motion: homography turned round", "motion/align.py",
           "pose = scaled(self._last.pose @ followed)",
           "pose = scaled(self._last.pose @ inverse(followed))", moving_tests("pans_with")),
    Mutant("motion: window's corner with the wrong sign", "motion/warp.py",
           "shift(-origin[1], -origin[0])", "shift(origin[1], origin[0])",
           moving_tests("pans_with")),
    Mutant("motion: homographies lead to the first reference", "motion/align.py",
           "inverse(self._last.pose) @ self._anchor @ matrix",
           "inverse(self._last.pose) @ matrix", moving_tests("relative_to_reference")),
    Mutant("motion: homography to a refused frame followed", "motion/align.py",
           "self._missed = True", "pass", moving_tests("refused_frame")),
    Mutant("motion: new reference kept from the network", "runtime/placement/followed.py",
           "stream.full = stream.full or aligned.anchored", "pass",
           moving_tests("new_references")),
    Mutant("motion: region of interest stays behind",
           "runtime/placement/followed.py",
           "return aligned.warp(grey)[:, :, 0] >= 128",
           "return Aligned(aligned.frame, aligned.window).warp(grey)[:, :, 0] >= 128",
           moving_tests("region_of_interest")),
    Mutant("motion: ms without estimation and warp", "runtime/placement/followed.py",
           "spent_ms = (time.perf_counter() - begin) * 1e3", "spent_ms = 0.0",
           moving_tests("ms_holds")),
    Mutant("motion: a camera never rests", "runtime/placement/watch.py",
           "self._idle = self._idle + 1 if (still or useless) and not aligned.anchored else 0",
           "self._idle = 0", moving_tests("pan_and_rests")),
    Mutant("calls of another size go on in the same session", "api.py",
           "(session.plan.size, session.slots) == (plan.size, rows)", "session.slots == rows",
           ("tests/test_api.py", "-k", "other_sizes")),
    Mutant("summary without new references", "cli/track.py",
           'self.reasons[stats.reason or ""] += 1',
           'self.reasons[stats.reason or ""] += 1\n            return',
           ("tests/test_cli.py", "-k", "new_references")),
    Mutant("mosaic scrolls the other way", "cli/panels.py",
           "_scrolled(self._canvas, dy, dx)", "_scrolled(self._canvas, -dy, -dx)",
           ("tests/test_panels.py", "-k", "mosaic")),
    Mutant("heat in the window's place", "cli/panels.py",
           "heat = result.to_frame_map(torch.from_numpy(heat)).numpy()", "pass",
           ("tests/test_panels.py", "-k", "followed")),
    Mutant("native: warp takes scattered pixels for neighbours", WARP,
           "breaks &= ~1u;", "breaks = 0;",
           native_warps("alike")),
    Mutant("native: warp without perspective inside a run", WARP,
           "vdiv(n, vadd(first, vmul(per_px, n)))", "vdiv(n, first)", native_warps("alike")),
    Mutant("native: warp reads behind the frame", WARP,
           "base + farthest - call_.frame >= (call_.h - 3) * call_.stride_y", "farthest == 1 << 30",
           native_warps("beyond")),
    Mutant("native: warp's mask one column short", "native/src/warp.cpp",
           "spans[2 * y + 1] = int32_t(last) + 1;", "spans[2 * y + 1] = int32_t(last);",
           native_warps("alike")),
]  # fmt: skip


def run_tests(source: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests against the package in `source`."""
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    if tests[0] == INTERPRETED:
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
    )


class Sources:
    """A copy of what is tested; its native library is built when a native fault wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "native"):
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)

    def build(self) -> None:
        """Compile the library. Raises: SystemExit with what the compiler says."""
        build = self.folder / "build"
        path = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
        steps = [["cmake", "--build", str(build)]]
        if not build.exists():
            flags = ("-DCMAKE_BUILD_TYPE=Quick", "-DCMAKE_CXX_FLAGS_QUICK=-O1")
            native = str(self.folder / "native")
            steps.insert(0, ["cmake", "-S", native, "-B", str(build), "-G", "Ninja", *flags])
        for step in steps:
            done = subprocess.run(
                step, env={**os.environ, "PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(step)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        shutil.copy2(build / Path(LIBRARY).name, self.folder / LIBRARY)

    def test(self, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """Run tests against the copy."""
        return run_tests(self.folder / "src", tests)


def judge(mutant: Mutant, sources: Sources) -> str | None:
    """Plant a fault, run its tests, mend it; returns what is wrong, None where it was noticed."""
    path = sources.folder / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"applies {text.count(mutant.old)} times to {mutant.file}, expected once"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        if mutant.native:
            sources.build()
        done = sources.test(mutant.tests)
    except subprocess.TimeoutExpired:
        return None
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return "survived: no test noticed"
    crashed = mutant.native and done.returncode < 0
    if done.returncode != PYTEST_TESTS_FAILED and not crashed:
        return f"pytest exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return None


def judge_all(chosen: list[Mutant], folder: Path, *, native: bool) -> int:
    """Judge mutants of one kind, which must not be noticed without their fault; counts failures."""
    if not chosen:
        return 0
    sources = Sources(folder)
    if native:
        sources.build()
    for tests in dict.fromkeys(m.tests for m in chosen):
        done = sources.test(tests)
        if done.returncode:
            print(f"the tests fail without a fault: {' '.join(tests)}\n{done.stdout[-3000:]}")
            return len(chosen)
    survivors = 0
    for mutant in chosen:
        wrong = judge(mutant, sources)
        survivors += wrong is not None
        print(f"{'FAILED' if wrong else 'ok':7}{mutant.name}{': ' + wrong if wrong else ''}",
              flush=True)  # fmt: skip
    return survivors


def main(names: list[str]) -> int:
    """Run the mutants named, or all; returns the exit code."""
    chosen = [m for m in MUTANTS if not names or m.name in names]
    if not chosen:
        print(f"no mutant of that name; there are: {', '.join(m.name for m in MUTANTS)}")
        return 2
    survivors = 0
    for native in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            survivors += judge_all([m for m in chosen if m.native == native], Path(folder),
                                   native=native)  # fmt: skip
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
