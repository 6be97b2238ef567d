"""Faults of estimated motion, alignment, warps and sessions that follow cameras."""

from mutant import Mutant

MUTANTS = [
    Mutant(
        "motion: vectors point the other way", "video/reader.py", "read_vectors",
        'table["motion_x"] / scale, table["motion_y"]',
        '-table["motion_x"] / scale, -table["motion_y"]',
        tests=("test_estimators.py",), names="decoder_gives",
    ),
    Mutant(
        "motion: vectors of another scene believed", "motion/codec.py", "_chosen",
        "if moved > LEAST_FOREIGN and moved > BACKED * still:",
        "if moved > 1e9 and moved > BACKED * still:",
        tests=("test_estimators.py",), names="another_scene",
    ),
    Mutant(
        "motion: nobody says that corners were followed", "motion/codec.py", "Codec.estimate",
        "fallback=motion.reason", "fallback=None",
        tests=("test_estimators.py",), names="fall_back",
    ),
    Mutant(
        "motion: cells that did not fit are looked at", "motion/features.py",
        "Features._corners",
        "fitted = self._unfit[cells] < LEAST_KEPT", "fitted = self._unfit[cells] < 2",
        tests=("test_estimators.py",), names="left_out",
    ),
    Mutant(
        "motion: chain never corrected", "motion/align.py", "Aligner._registered",
        "if self._since_registered < REGISTER_EVERY:", "if True:",
        tests=("test_aligner.py",), names="long_pan and features", few=True,
    ),
    Mutant(
        "motion: homography turned round", "motion/align.py", "Aligner._moved",
        "pose = scaled(self._last.pose @ followed)",
        "pose = scaled(self._last.pose @ inverse(followed))",
        tests=("test_moving.py",), names="pans_with and not cpu", few=True,
    ),
    Mutant(
        "motion: window's corner with the wrong sign", "motion/warp.py", "to_window",
        "shift(-origin[1], -origin[0])", "shift(origin[1], origin[0])",
        tests=("test_moving.py",), names="pans_with and not cpu",
    ),
    Mutant(
        "motion: homographies lead to the first reference", "motion/align.py",
        "Aligner._check_given",
        "inverse(self._last.pose) @ self._anchor @ matrix", "inverse(self._last.pose) @ matrix",
        tests=("test_moving.py",), names="relative_to_reference and not cpu",
    ),
    Mutant(
        "motion: homography to a refused frame followed", "motion/align.py", "Aligner.miss",
        "self._missed = True", "pass",
        tests=("test_moving.py",), names="refused_frame and not cpu",
    ),
    Mutant(
        "motion: new reference kept from the network", "runtime/placement/followed.py",
        "Followed.place",
        "stream.full = stream.full or aligned.anchored", "pass",
        tests=("test_moving.py",), names="new_references and not cpu", few=True,
    ),
    Mutant(
        "motion: region of interest stays behind", "runtime/placement/followed.py", "_moved",
        "return aligned.warp(grey)[:, :, 0] >= 128",
        "return Aligned(aligned.frame, aligned.window).warp(grey)[:, :, 0] >= 128",
        tests=("test_moving_results.py",), names="region_of_interest and not cpu",
    ),
    Mutant(
        "motion: ms without estimation and warp", "runtime/placement/followed.py",
        "Followed.place",
        "spent_ms = (time.perf_counter() - begin) * 1e3", "spent_ms = 0.0",
        tests=("test_auto.py",), names="ms_holds and not cpu",
    ),
    Mutant(
        "motion: a camera never rests", "runtime/placement/watch.py", "Watch.rests",
        "self._idle = self._idle + 1 if (still or useless) and not aligned.anchored else 0",
        "self._idle = 0",
        tests=("test_auto.py",), names="pan_and_rests and not cpu", few=True,
    ),
    Mutant(
        "native: warp takes scattered pixels for neighbours", "native/src/isa/warp.h", "find",
        "breaks &= ~1u;", "breaks = 0;",
        tests=("test_warp.py",), names="native and alike",
    ),
    Mutant(
        "native: warp without perspective inside a run", "native/src/isa/warp.h", "find",
        "vdiv(n, vadd(first, vmul(per_px, n)))", "vdiv(n, first)",
        tests=("test_warp.py",), names="native and alike",
    ),
    Mutant(
        "native: warp reads behind the frame", "native/src/isa/warp.h", "line_up",
        "base + farthest - call_.frame >= (call_.h - 3) * call_.stride_y",
        "farthest == 1 << 30",
        tests=("test_warp.py",), names="native and beyond",
    ),
    Mutant(
        "native: warp's mask one column short", "native/src/warp.cpp", "find_spans",
        "spans[2 * y + 1] = int32_t(last) + 1;", "spans[2 * y + 1] = int32_t(last);",
        tests=("test_warp.py",), names="native and alike", few=True,
    ),
]  # fmt: skip
