// Goes through the active pixels for operations that compute each pixel on its own.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "finish.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// The state of one of a step's inputs, as the current slot has it.
template <class T>
struct Map {
  Map(const Job& job, int input)
      : job(job), value(job.step->inputs[input]), h(job.program->values[value].h),
        w(job.program->values[value].w), c(job.program->values[value].c) {}
  void enter(int slot) { ring = job.ring<const T>(value, slot); }
  TD_INLINE const T* at(int y, int x) const { return ring.at(y, x); }

  const Job& job;
  const int value, h, w, c;
  Ring<const T> ring;
};

inline const Value& output_of(const Job& job) { return job.program->values[job.step->output]; }

// One copy for all operations: next to what they compute, a call costs little.
template <class Out>
__attribute__((noinline)) void complete(Finisher<Out>& finish, const Pixel& p, int c0, int n,
                                        float* row) {
  finish(p, c0, n, row);
}

// op.enter(slot), op.at(pixel), then op(c0, n, row) for each group: it writes channels c0 .. c0 + n
// to row, where whole vectors of them have room.
// Out: how the output is stored; group: the only one that is computed, -1: all.
template <class Out, class Op>
void run_pixels(const Job& job, size_t begin, size_t end, Op op, int group = -1) {
  Finisher<Out> finish(job);
  const int first = group < 0 ? 0 : group * kGroup;
  const int channels = group < 0 ? output_of(job).c : std::min(output_of(job).c, first + kGroup);
  alignas(64) float row[kRow];
  int slot = -1;
  for (size_t i = begin; i < end; ++i) {
    const Pixel& p = job.pixels[i];
    if (int(p.slot) != slot) op.enter(slot = p.slot);
    op.at(p);
    for (int c0 = first; c0 < channels; c0 += kGroup) {
      const int n = std::min(kGroup, channels - c0);
      op(c0, n, row);
      complete(finish, p, c0, n, row);
    }
  }
}

template <class T>
TD_INLINE void load_row(const T* from, int n, float* row) {
  for (int c = 0; c < n; c += kWidth) vstore(row + c, vload_some(from + c, n - c));
}

}  // namespace TD_ISA
}  // namespace td
