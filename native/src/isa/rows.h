// All operations but convolutions: each active pixel's channels are computed group by group.
#pragma once

#include "elementwise.h"
#include "move.h"
#include "pool.h"

namespace td {
namespace TD_ISA {

template <class T>
void run_rows(const Job& job, size_t begin, size_t end, int group, Scratch& scratch) {
  switch (job.step->code) {
    case Code::max_pool2d: return MaxPoolRuns<T>(job, scratch).run(begin, end);
    case Code::avg_pool2d: return run_pixels<T>(job, begin, end, SumPool<T>(job));
    case Code::adaptive_avg: return run_pixels<T>(job, begin, end, SumPool<T>(job), group);
    case Code::adaptive_max: return run_pixels<T>(job, begin, end, MaxPool<T>(job), group);
    // partial results of a global pool are kept in float32
    case Code::tile_sum: return run_pixels<float>(job, begin, end, SumPool<T>(job), group);
    case Code::tile_max: return run_pixels<float>(job, begin, end, MaxPool<T>(job), group);
    case Code::global_avg: return run_pixels<T>(job, begin, end, SumPool<float>(job));
    case Code::global_max: return run_pixels<T>(job, begin, end, MaxPool<float>(job));
    case Code::pointwise: return run_pixels<T>(job, begin, end, Pointwise<T>(job));
    case Code::affine: return run_pixels<T>(job, begin, end, Affine<T>(job));
    case Code::binary: return run_pixels<T>(job, begin, end, Binary<T>(job));
    case Code::constant: return run_pixels<T>(job, begin, end, Constant<T>(job));
    case Code::softmax: return run_pixels<T>(job, begin, end, Softmax<T, false>(job, scratch));
    case Code::log_softmax: return run_pixels<T>(job, begin, end, Softmax<T, true>(job, scratch));
    case Code::bilinear: return run_pixels<T>(job, begin, end, Bilinear<T>(job));
    case Code::remap: return run_pixels<T>(job, begin, end, Remap<T>(job));
    case Code::pixel_shuffle: return run_pixels<T>(job, begin, end, PixelShuffle<T>(job));
    case Code::pixel_unshuffle: return run_pixels<T>(job, begin, end, PixelUnshuffle<T>(job));
    case Code::reshape: return run_pixels<T>(job, begin, end, Reshape<T>(job));
    case Code::copy: return run_pixels<T>(job, begin, end, Copy<T>(job));
    // these have their own kernels
    case Code::conv2d:
    case Code::conv_transpose2d:
    case Code::foreign:
    case Code::count_: return;
  }
}

}  // namespace TD_ISA
}  // namespace td
