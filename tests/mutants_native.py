"""Faults of the cpu engine and of the native library."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "native: padding on the wrong side", "native/src/isa/pack.h", "phase_taps",
        "taps.push_back({ky * raw.dy - raw.pad_y, kx * raw.dx - raw.pad_x});",
        "taps.push_back({ky * raw.dy - raw.pad_y, kx * raw.dx + raw.pad_x});",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3)",
    ),
    Mutant(
        "native: bias dropped", "native/src/isa/pack.h", "prepare_conv",
        "for (int n = 0; raw.bias && n < panel.n; ++n) p.bias",
        "for (int n = 0; raw.bias && n < 0; ++n) p.bias",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3)",
    ),
    Mutant(
        "native: border not zero", "native/src/isa/pack.h", "prepare_conv",
        "p.zeros.assign(size_t(raw.c_in) * raw.groups + 2, from_float<T>(0));",
        "p.zeros.assign(size_t(raw.c_in) * raw.groups + 2, from_float<T>(1));",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3)",
    ),
    Mutant(
        "native: stride offset", "native/src/isa/conv.h", "origin",
        "return {p.y * p_.stride_y, p.x * p_.stride_x};",
        "return {p.y * p_.stride_y, p.x * p_.stride_x + p_.stride_x - 1};",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3-s2)",
    ),
    Mutant(
        "native: phase of the transposed convolution", "native/src/isa/pack.h", "phase_taps",
        "const int x = rx + raw.pad_x - (raw.kw", "const int x = rx + 1 + raw.pad_x - (raw.kw",
        tests=("test_ops.py",), names="test_op and cpu and (deconv-4x4)",
    ),
    Mutant(
        "native: chunk begins one late", "native/src/isa/pack.h", "make_chunks",
        "out.push_back({s, 1, k, end, weights});",
        "out.push_back({s, 1, k ? k + 1 : k, end, weights});",
        tests=("test_ops.py",), names="test_op and cpu and (conv-1x1-1100 or conv-3x3-370)",
        few=True,
    ),
    Mutant(
        "native: a tile's lower pixels left out", "native/src/masks.cpp", "list_tiles",
        "unsigned(below[k] >> x & 3) << 2", "unsigned(row[k] >> x & 3) << 2",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: tiles listed by their first column", "native/src/masks.cpp", "list_tiles",
        "tiles = (any | any >> 1) & kFirst", "tiles = any & kFirst",
        tests=("test_cpu.py",), names="test_tiles", few=True,
    ),
    Mutant(
        "native: last row of an odd map in no tile", "native/src/frame.cpp", "list",
        "down = (v.h + side - 1) / side", "down = v.h / side",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: sign in a tile's inputs", "native/src/isa/winograd.h", "transform_input",
        "vsub(rows[y][2], rows[y][1])", "vsub(rows[y][1], rows[y][2])",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: sign in a tile's outputs", "native/src/isa/winograd.h", "transform_sums",
        "vsub(vsub(rows[1][x], rows[2][x]), rows[3][x])",
        "vadd(vsub(rows[1][x], rows[2][x]), rows[3][x])",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: half of a tile's weights", "native/src/isa/winograd.h", "transform_weights",
        "to[y * kPatch + 1][i] = 0.5f", "to[y * kPatch + 1][i] = 0.25f",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: second chunk of a tile begins anew", "native/src/isa/winograd.h",
        "multiply_place",
        "k ? nullptr : kZeros", "kZeros",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: a tile's bias left out", "native/src/isa/winograd.h", "complete",
        "vload(conv_.bias.data() + panel.bias + v * kWidth), rows[0] + c)",
        "vzero(), rows[0] + c)",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: tiles whatever the tolerance", "runtime/thresholds.py", "Thresholds.start",
        "state.exact[slot] = tolerance == 0", "state.exact[slot] = False",
        tests=("test_cpu.py",), names="test_tiles",
    ),
    Mutant(
        "native: a slot in another's packing", "native/src/frame.cpp", "takes",
        "engine_.packed_of(i, call_.slots[s].exact) == packed;",
        "(packed || engine_.packed_of(i, true) == packed);",
        tests=("test_tolerance.py",), names="different and cpu",
    ),
    Mutant(
        "native: neighbours taken together across a gap", "native/src/masks.cpp", "list_row",
        "uint16_t(slot), uint16_t(end - x)};", "uint16_t(slot), uint16_t(end - x + 1)};",
        tests=("test_ops.py",), names="test_op and cpu and (depthwise)",
    ),
    Mutant(
        "native: list one short", "native/src/masks.cpp", "list_row",
        "for (int x = begin; x < end; ++x)\n      out[count++]",
        "for (int x = begin; x < end - 1; ++x)\n      out[count++]",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3)", few=True,
    ),
    Mutant(
        "native: active pixels beyond the edge", "native/src/masks.cpp", "spread_row",
        "axis.pad - t * axis.dilation);\n    out[out_words - 1] &= tail_mask(axis.n_out);",
        "axis.pad - t * axis.dilation);",
        tests=("test_ops.py",), names="test_op and cpu and (conv-3x3)",
    ),
    Mutant(
        "native: residual skipped", "native/src/isa/finish.h", "complete",
        "if (other) {", "if (other && tail < 0) {",
        tests=("test_ops.py",), names="test_op and cpu and (residual)", few=True,
    ),
    Mutant(
        "native: rms over a whole group", "native/src/isa/finish.h", "beyond",
        "square * float(n)", "square * float(kGroup)",
        tests=("test_cpu_numbers.py",), names="from_its_threshold_on and cpu", few=True,
    ),
    Mutant(
        "native: change mask overwritten", "native/src/isa/finish.h", "flush",
        "__atomic_fetch_or(word_, bits_, __ATOMIC_RELAXED);",
        "__atomic_exchange_n(word_, bits_, __ATOMIC_RELAXED);",
        tests=("test_cpu.py",), names="bit_for_bit_in_networks", few=True,
    ),
    Mutant(
        "native: change not told", "native/src/isa/finish.h", "count",
        "__atomic_store_n(job_.any + slot_, uint8_t(1), __ATOMIC_RELAXED);", "",
        tests=("test_cpu.py",), names="bit_for_bit_in_networks",
    ),
    Mutant(
        "native: last row of the input stays", "native/src/isa/input.h", "publish_input",
        "for (int y = y0; y < y1; ++y) {\n    const uint64_t* const changed",
        "for (int y = y0; y + 1 < y1; ++y) {\n    const uint64_t* const changed",
        tests=("test_ops.py",), names="test_op and cpu and (conv-1x1)",
    ),
    Mutant(
        "native: input dilated within words only", "native/src/masks.cpp", "dilate_row",
        "rows[k] << 1 | left | rows[k] >> 1", "rows[k] << 1 | rows[k] >> 1",
        tests=("test_cpu_numbers.py",), names="input_gate_is_the_torch_engines", few=True,
    ),
    Mutant(
        "native: strong changes in a cell overlooked", "native/src/masks.cpp", "for_hot",
        "own.fine || ", "",
        tests=("test_cpu_numbers.py",), names="input_gate_is_the_torch_engines",
    ),
    Mutant(
        "native: cells count the rows of those above", "native/src/isa/input.h", "add_to_cells",
        "first ? vload(flat_ + x) :", "y == 0 ? vload(flat_ + x) :",
        tests=("test_cpu_numbers.py",), names="input_gate_is_the_torch_engines",
    ),
    Mutant(
        "native: last rows of the input left out", "native/src/frame.cpp", "input_blocks",
        "if (block >= each * call_.n_slots) return;",
        "if (block >= each * call_.n_slots - 1) return;",
        tests=("test_ops.py",), names="test_op and cpu and (conv-1x1)",
    ),
    Mutant(
        "native: group of a global pool left out", "native/src/isa/pixels.h", "run_pixels",
        "group < 0 ? 0 : group * kGroup", "0",
        tests=("test_ops.py",), names="test_op and cpu and (global-avg)",
    ),
    Mutant(
        "native: change mask in another's place", "native/src/frame.cpp", "report",
        "slot.changed + engine_.reported_words[n], mask", "slot.changed, mask",
        tests=("test_cpu_numbers.py",), names="masks_of_several_outputs",
    ),
    Mutant(
        "native: average over the padding too", "native/src/isa/pool.h", "counted",
        "if (adaptive || !with_pad) return span(o).count;",
        "if (adaptive) return span(o).count;",
        tests=("test_ops.py",), names="test_op and cpu and (avgpool)",
    ),
    Mutant(
        "native: slopes of the first group for all", "native/src/isa/elementwise.h", "operator",
        "slope.empty() ? nullptr : slope.data() + c0, row, n);",
        "slope.empty() ? nullptr : slope.data(), row, n);",
        tests=("test_ops.py",), names="test_op and cpu and (prelu-70)",
    ),
    Mutant(
        "native: fused slopes of the first group for all", "native/src/isa/finish.h", "slope",
        "part.slope.data() + (part.slope.size() > 1 ? c0 : 0);", "part.slope.data();",
        tests=("test_ops.py",), names="test_op and cpu and (prelu-conv)",
    ),
    Mutant(
        "native: logarithm with a wrong digit", "native/src/isa/pointwise.h", "log_of_ratio",
        "0x1.99968ep-2f", "0x1.98968ep-2f",
        tests=("test_cpu_numbers.py",), names="number_by_number",
    ),
    Mutant(
        "native: nothing clamped from below", "native/src/isa/pointwise.h", "vclamp",
        "vmin(vset(high), vmax(vset(low), x))", "vmin(vset(high), x)",
        tests=("test_ops.py",), names="test_op and cpu and (functions-0)",
    ),
    Mutant(
        "native: softmax over a whole vector", "native/src/isa/elementwise.h", "at",
        "all + padded, -INFINITY);", "all + padded, 0.0f);",
        tests=("test_ops.py",), names="test_op and cpu and (softmax)",
    ),
    Mutant(
        "native: one channel for all is not repeated", "native/src/isa/elementwise.h", "single",
        "single(c == 1 && channels > 1)", "single(channels < 0)",
        tests=("test_ops.py",), names="test_op and cpu and (mul-channel)",
    ),
    Mutant(
        "native: shuffled pixels transposed", "native/src/isa/move.h", "at",
        "p.y % factor * factor + p.x % factor;", "p.x % factor * factor + p.y % factor;",
        tests=("test_ops.py",), names="test_op and cpu and (pixel-shuffle)",
    ),
    Mutant(
        "native: floor rounds up on AVX2", "native/src/isa/simd.h", "vfloor",
        "_mm256_round_ps(a.v, 0x09)", "_mm256_round_ps(a.v, 0x0A)",
        tests=("test_ops.py",), names="test_op and cpu and (functions-1 and avx2)",
    ),
    Mutant(
        "native: odd last channel left out in bf16", "native/src/isa/multiply.h", "accumulate",
        "if (k == k1) continue;", "continue;",
        tests=("test_ops.py",), names="test_op_half and cpu and conv",
    ),
    Mutant(
        "native: sides of a fused function exchanged", "native/src/program.cpp", "read_part",
        "part.first = in.flag();", "part.first = !in.flag();",
        tests=("test_ops.py",), names="test_op and cpu and (sub-from-value)",
    ),
    Mutant(
        "native: forced pixels are compared", "native/src/frame.cpp", "make_job",
        "sets_.forced(i, 0) != nullptr,", "false,",
        tests=("test_bench.py",), names="forced_sets_are_used and cpu", few=True,
    ),
    Mutant(
        "native: one thread whatever the call says", "native/src/frame.cpp", "parallel",
        "const int threads = std::max(1, call_.threads);\n    if",
        "const int threads = 1;\n    if",
        tests=("test_cpu_library.py",), names="shares_the_openmp",
    ),
    Mutant(
        "native: what a foreign step published is not told", "native/src/frame.cpp",
        "run_foreign",
        "space_.any_at(step.output, s) = published > 0;", "",
        tests=("test_cpu.py",), names="foreign_steps_run", few=True,
    ),
    Mutant(
        "native: memory that ran out is not told", "native/src/frame.cpp", "run",
        "if (failed_) return kNoMemory;", "",
        tests=("test_cpu_memory.py",), names="memory_that", few=True,
    ),
    Mutant(
        "native: a warp without memory is not told", "native/src/warp.cpp", "run_warp",
        "if (failed) throw std::bad_alloc();", "",
        tests=("test_cpu_memory.py",), names="memory_that",
    ),
    Mutant(
        "native: very wide masks begin anew", "native/src/masks.cpp", "spread_row",
        "axis.pad - t * axis.dilation - 128 * from);", "axis.pad - t * axis.dilation);",
        tests=("test_cpu_numbers.py",), names="very_wide", few=True,
    ),
    Mutant(
        "the interpreter's lock is kept during a frame", "native_lib.py", "library",
        "lib = ctypes.CDLL(str(path))", "lib = ctypes.PyDLL(str(path))",
        tests=("test_cpu.py",), names="other_python",
    ),
    Mutant(
        "one thread whatever PyTorch has", "engines/cpu/engine.py", "CpuEngine.step",
        "threads=torch.get_num_threads(),", "threads=1,",
        tests=("test_cpu_library.py",), names="shares_the_openmp",
    ),
    Mutant(
        "an error from within is of no thread", "engines/cpu/engine.py", "CpuEngine.step",
        "if native.error is not None:\n            raise native.error", "",
        tests=("test_cpu.py",), names="within or foreign_steps_run",
    ),
    Mutant(
        "PyTorch's weights kept beside the packed ones", "engines/cpu/engine.py",
        "CpuEngine.__init__",
        "only=sorted(self._foreign)", "only=None",
        tests=("test_cpu_memory.py",), names="scratch_bytes",
    ),
    Mutant(
        "first OpenMP runtime by name", "native_lib.py", "library",
        "runtime = pytorchs_openmp() or next", "runtime = next",
        tests=("test_cpu_library.py",), names="runtime_is_taken",
    ),
    Mutant(
        "wrong instruction set passes by", "engines/__init__.py", "choose",
        "if wrong:\n        raise EngineError(wrong)", "pass",
        tests=("test_cpu_library.py",), names="unknown_instruction",
    ),
]  # fmt: skip
