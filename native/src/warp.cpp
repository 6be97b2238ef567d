#include "warp.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

namespace td {
namespace {

// Of each row, the columns whose pixel centres lie among the frame's: first, and one behind the last.
// The same numbers in the same order as `motion/warp.py`'s valid_mask, which is the definition.
std::vector<int32_t> find_spans(const td_warp_call& call) {
  const double* const m = call.to_frame;
  const double r = call.rounding_px, right = call.w - 1 + r, bottom = call.h - 1 + r;
  double edges[4][3];
  for (int i = 0; i < 3; ++i) {
    edges[0][i] = m[i] + r * m[6 + i];
    edges[1][i] = right * m[6 + i] - m[i];
    edges[2][i] = m[3 + i] + r * m[6 + i];
    edges[3][i] = bottom * m[6 + i] - m[3 + i];
  }
  std::vector<int32_t> spans(size_t(call.out_h) * 2);
  for (int y = 0; y < call.out_h; ++y) {
    double first = 0, last = call.out_w - 1.0;
    for (const double* const edge : edges) {
      const double slope = edge[0], value = edge[1] * y + edge[2];
      if (slope > 0)
        first = std::max(first, std::ceil(-value / slope));
      else if (slope < 0)
        last = std::min(last, std::floor(value / -slope));
      else if (!(value >= 0))
        last = -1;
    }
    if (!(first <= last)) first = 0, last = -1;
    spans[2 * y] = int32_t(first);
    spans[2 * y + 1] = int32_t(last) + 1;
  }
  return spans;
}

void mark(const td_warp_call& call, const int32_t* spans, int y0, int y1) {
  for (int y = y0; y < y1; ++y) {
    uint8_t* const row = call.mask + size_t(y) * call.out_w;
    const int x = spans[2 * y], end = spans[2 * y + 1];
    std::memset(row, 0, x);
    std::memset(row + x, 1, end - x);
    std::memset(row + end, 0, call.out_w - end);
  }
}

}  // namespace

void run_warp(const Kernels& kernels, const td_warp_call& call) {
  const std::vector<int32_t> spans = find_spans(call);
  std::vector<Scratch> scratch(call.threads);
  // nothing may be thrown out of a parallel region
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(call.threads) schedule(static)
  for (int t = 0; t < call.threads; ++t) {
    const int y0 = int(int64_t(call.out_h) * t / call.threads);
    const int y1 = int(int64_t(call.out_h) * (t + 1) / call.threads);
    try {
      if (call.frame) kernels.warp_rows(call, spans.data(), y0, y1, scratch[t]);
    } catch (const std::bad_alloc&) {
      failed.store(true, std::memory_order_relaxed);
    }
    if (call.mask) mark(call, spans.data(), y0, y1);
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace td
