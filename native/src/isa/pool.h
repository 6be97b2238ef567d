// Pools: each output reduces a window of its input (ops/pool.py).
#pragma once

#include "pixels.h"

namespace td {
namespace TD_ISA {

// Places along an axis that lie inside the map: count of them, `step` apart.
struct Span {
  int begin, count, step;
};

// Where the windows of a pool lie along one axis.
struct PoolAxis {
  int n_in, n_out, kernel, stride, pad, dilation;
  bool adaptive, with_pad;

  TD_INLINE Span span(int o) const {
    if (adaptive) {
      const int begin = int(int64_t(o) * n_in / n_out);
      return {begin, int((int64_t(o + 1) * n_in + n_out - 1) / n_out) - begin, 1};
    }
    const int begin = o * stride - pad;
    const int skipped = begin < 0 ? (dilation - 1 - begin) / dilation : 0;
    const int last = begin + (kernel - 1) * dilation;
    const int taken = last < n_in ? kernel : (n_in - begin + dilation - 1) / dilation;
    return {begin + skipped * dilation, std::max(0, taken - skipped), dilation};
  }
  // pixels that a mean divides by
  TD_INLINE int counted(int o) const {
    if (adaptive || !with_pad) return span(o).count;
    const int begin = o * stride - pad;
    return std::min(begin + kernel, n_in + pad) - begin;
  }
};

struct PoolAxes {
  PoolAxis y, x;

  explicit PoolAxes(const Job& job) {
    const Value& in = job.program->values[job.step->inputs[0]];
    const Value& out = output_of(job);
    const std::vector<int64_t>& p = job.step->params.ints;
    const Code code = job.step->code;
    y = {in.h, out.h, in.h, 1, 0, 1, false, false};
    x = {in.w, out.w, in.w, 1, 0, 1, false, false};
    if (code == Code::tile_sum || code == Code::tile_max) {
      y.kernel = y.stride = x.kernel = x.stride = int(p[0]);
    } else if (code == Code::adaptive_avg || code == Code::adaptive_max) {
      y.adaptive = x.adaptive = true;
    } else if (code == Code::max_pool2d || code == Code::avg_pool2d) {
      y.kernel = int(p[0]), y.stride = int(p[2]), y.pad = int(p[4]), y.dilation = int(p[6]);
      x.kernel = int(p[1]), x.stride = int(p[3]), x.pad = int(p[5]), x.dilation = int(p[7]);
      y.with_pad = x.with_pad = p[8] != 0;
    }
  }
};

// A loop over places in equal distances; behind the first `seam` of them (0: never) it goes back by a
// whole turn of the ring.
struct Loop {
  int count;
  ptrdiff_t step;
  int seam = 0;
  ptrdiff_t turn = 0;

  Loop(int count, ptrdiff_t step) : count(count), step(step) {}
  // the places of a span; seam: the first place behind the ring's end; unit: numbers between places
  Loop(const Span& span, int seam_at, ptrdiff_t unit, ptrdiff_t turn)
      : count(span.count), step(span.step * unit), turn(turn) {
    const int before = seam_at - span.begin;
    if (before > 0 && (count - 1) * span.step >= before) seam = (before + span.step - 1) / span.step;
  }
};

// Two nested loops over the places of a window.
struct Walk {
  Loop outer, inner;
};

template <class T>
Loop down(const Ring<T>& ring, const Span& rows) {
  return {rows, ring.seam_y, ring.line, ring.turn};
}
template <class T>
Loop across(const Ring<T>& ring, const Span& cols) {
  return {cols, ring.seam_x, ring.pitch, ring.line};
}

// Maxima keep NaN. The order of the walk is part of the result: of the sum, and of a maximum's sign
// where it is 0.
template <bool kMax, bool kSeam, int NV, class T>
TD_INLINE void reduce_vectors(const T* from, const Walk& walk, int left, float* out) {
  V sum[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) sum[v] = kMax ? vset(-INFINITY) : vzero();
  const Loop &outer = walk.outer, &inner = walk.inner;
  for (int i = 1; i <= outer.count; ++i) {
    const T* p = from;
    for (int j = 1; j <= inner.count; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const V x = NV > 1 ? vload(p + v * kWidth) : vload_some(p, left);
        sum[v] = kMax ? vmax_nan(x, sum[v]) : vadd(sum[v], x);
      }
      p += inner.step;
      if (kSeam && j == inner.seam) p -= inner.turn;
    }
    from += outer.step;
    if (kSeam && i == outer.seam) from -= outer.turn;
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) vstore(out + v * kWidth, sum[v]);
}

template <bool kMax, bool kSeam, class T>
TD_INLINE void reduce_channels(const T* from, const Walk& walk, int n, float* out) {
  int c = 0;
  for (; c + 4 * kWidth <= n; c += 4 * kWidth)
    reduce_vectors<kMax, kSeam, 4>(from + c, walk, n - c, out + c);
  for (; c < n; c += kWidth) reduce_vectors<kMax, kSeam, 1>(from + c, walk, n - c, out + c);
}

// Reduces n channels over a window whose first pixel's channels begin at `from`.
template <bool kMax, class T>
TD_INLINE void reduce(const T* from, const Walk& walk, int n, float* out) {
  if (walk.outer.seam || walk.inner.seam)
    reduce_channels<kMax, true>(from, walk, n, out);
  else
    reduce_channels<kMax, false>(from, walk, n, out);
}

// Sums, and means where something is to divide by.
template <class T>
struct SumPool {
  explicit SumPool(const Job& job) : in(job, 0), axes(job), code(job.step->code) {
    if (code == Code::avg_pool2d) divisor = float(job.step->params.ints[9]);
    if (code == Code::global_avg) divisor = float(job.step->params.ints[0]);
  }
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) {
    const Span rows = axes.y.span(p.y), cols = axes.x.span(p.x);
    from = in.at(rows.begin, cols.begin);
    walk = {down(in.ring, rows), across(in.ring, cols)};
    count = divisor > 0 ? divisor : float(axes.y.counted(p.y) * axes.x.counted(p.x));
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    reduce<false>(from + c0, walk, n, row);
    if (code == Code::tile_sum) return;
    for (int c = 0; c < n; c += kWidth) vstore(row + c, vdiv(vload(row + c), vset(count)));
  }

  Map<T> in;
  const PoolAxes axes;
  const Code code;
  float divisor = 0;  // 0: how many pixels count
  const T* from = nullptr;
  Walk walk{{0, 0}, {0, 0}};
  float count = 1;
};

template <class T>
struct MaxPool {
  explicit MaxPool(const Job& job) : in(job, 0), axes(job) {}
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) {
    const Span rows = axes.y.span(p.y), cols = axes.x.span(p.x);
    from = in.at(rows.begin, cols.begin);
    // columns outside: the order in which MaxPoolRuns joins its maxima
    walk = {across(in.ring, cols), down(in.ring, rows)};
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    reduce<true>(from + c0, walk, n, row);
  }

  Map<T> in;
  const PoolAxes axes;
  const T* from = nullptr;
  Walk walk{{0, 0}, {0, 0}};
};

// Max pools over runs of pixels, which share the maxima of their columns where windows are large.
template <class T>
class MaxPoolRuns {
 public:
  MaxPoolRuns(const Job& job, Scratch& scratch) : job_(job), pool_(job), finish_(job) {
    const PoolAxis& x = pool_.axes.x;
    const size_t columns = size_t(kRunPx - 1) * x.stride + x.kernel;
    columns_ = static_cast<float*>(scratch.get(sizeof(float) * kGroup * columns));
  }

  void run(size_t begin, size_t end) {
    const int channels = output_of(job_).c;
    int slot = -1;
    for (size_t i = begin; i < end;) {
      const Pixel* const p = job_.pixels + i;
      if (int(p->slot) != slot) pool_.enter(slot = p->slot);
      const int n_px = int(std::min({size_t(p->run), end - i, size_t(kRunPx)}));
      for (int c0 = 0; c0 < channels; c0 += kGroup) {
        const int n = std::min(kGroup, channels - c0);
        if (worth(p, n_px))
          run_shared(p, n_px, c0, n);
        else
          run_single(p, n_px, c0, n);
      }
      i += size_t(n_px);
    }
  }

 private:
  static constexpr int kRunPx = 32;

  // first column of a run, and how many
  Span columns(const Pixel* p, int n_px) const {
    const Span first = pool_.axes.x.span(p[0].x), last = pool_.axes.x.span(p[n_px - 1].x);
    return {first.begin, last.begin + last.count - first.begin, 1};
  }

  // loads with and without sharing
  bool worth(const Pixel* p, int n_px) const {
    const PoolAxis &y = pool_.axes.y, &x = pool_.axes.x;
    return x.dilation == 1 && columns(p, n_px).count * (y.kernel + 1) + n_px * (x.kernel + 1) <
                                  n_px * x.kernel * y.kernel;
  }

  void run_single(const Pixel* p, int n_px, int c0, int n) {
    for (int i = 0; i < n_px; ++i) {
      pool_.at(p[i]);
      pool_(c0, n, row_);
      complete(finish_, p[i], c0, n, row_);
    }
  }

  void run_shared(const Pixel* p, int n_px, int c0, int n) {
    const Span cols = columns(p, n_px), rows = pool_.axes.y.span(p->y);
    const Map<T>& in = pool_.in;
    const Walk column{{1, 0}, down(in.ring, rows)};
    for (int x = 0; x < cols.count; ++x)
      reduce<true>(in.at(rows.begin, cols.begin + x) + c0, column, n, columns_ + x * kGroup);
    for (int i = 0; i < n_px; ++i) {
      const Span mine = pool_.axes.x.span(p[i].x);
      reduce<true>(columns_ + (mine.begin - cols.begin) * kGroup,
                   {{1, 0}, {mine.count, kGroup}}, round_up(n, kWidth), row_);
      complete(finish_, p[i], c0, n, row_);
    }
  }

  const Job& job_;
  MaxPool<T> pool_;
  Finisher<T> finish_;
  float* columns_;
  alignas(64) float row_[kRow];
};

}  // namespace TD_ISA
}  // namespace td
