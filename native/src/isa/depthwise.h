// Depthwise convolution: one input channel per output channel, vectors of channels.
//
// Runs of neighbouring active pixels are computed a few at a time, so that they share what they read;
// each output is still one chain of multiply-adds over its taps in ascending order.
#pragma once

#include "pack.h"

namespace td {
namespace TD_ISA {

// neighbouring pixels of a run that are computed together
constexpr int kTogether = 4;
// rows of the windows that are
constexpr int kMostRows = 5;

struct PackedDepthwise : Packed {
  int kh, kw, sy, sx, dy, dx, pad_y, pad_x, channels;
  float* weights;  // [taps][channels, whole vectors]
  float* bias;     // [channels, whole vectors]
  int line;                    // channels, whole vectors
};

inline bool is_depthwise(const Program& program, const Step& step) {
  if (step.code != Code::conv2d) return false;
  const int64_t groups = step.params.ints[8];
  return groups > 1 && groups == program.values[step.inputs[0]].c &&
         groups == program.values[step.output].c;
}

inline std::unique_ptr<Packed> prepare_depthwise(const Program& program, const Step& step,
                                                 Arena& arena) {
  const RawConv raw(program, step);
  auto packed = std::make_unique<PackedDepthwise>();
  PackedDepthwise& p = *packed;
  p.kh = raw.kh, p.kw = raw.kw, p.sy = raw.sy, p.sx = raw.sx, p.dy = raw.dy, p.dx = raw.dx;
  p.pad_y = raw.pad_y, p.pad_x = raw.pad_x, p.channels = raw.groups;
  p.line = round_up(raw.groups, kWidth);
  const size_t size = size_t(p.line) * raw.kh * raw.kw;
  p.weights = arena.get<float>(size);
  p.bias = arena.get<float>(p.line);
  for (int c = 0; c < raw.groups; ++c) {
    for (int t = 0; t < raw.kh * raw.kw; ++t)
      p.weights[size_t(t) * p.line + c] = raw.at(c, 0, t / raw.kw, t % raw.kw);
    if (raw.bias) p.bias[c] = raw.bias[c];
  }
  p.bytes = (size + p.line) * 4;
  return packed;
}

template <class T>
class DepthwiseTask {
 public:
  explicit DepthwiseTask(const Job& job)
      : job_(job), p_(static_cast<const PackedDepthwise&>(*job.packed)),
        in_(job.program->values[job.step->inputs[0]]) {
    if (p_.dx != 1 || p_.kh != p_.kw) return;
    if (p_.kh == 3 && p_.sx == 1) together_ = pick<3, 1>();
    if (p_.kh == 3 && p_.sx == 2) together_ = pick<3, 2>();
    if (p_.kh == 5 && p_.sx == 1) together_ = pick<5, 1>();
    if (p_.kh == 5 && p_.sx == 2) together_ = pick<5, 2>();
  }

  void run(size_t begin, size_t end) {
    Finisher<T> finish(job_);
    alignas(64) float rows[kTogether * kRow];
    for (size_t i = begin; i < end;) {
      const Pixel& p = job_.pixels[i];
      enter(p.slot);
      int count = std::min<int>({kTogether, p.run, int(end - i)});
      const int y = p.y * p_.sy - p_.pad_y, x = p.x * p_.sx - p_.pad_x;
      const bool rows_inside = y >= 0 && y + (p_.kh - 1) * p_.dy < in_.h;
      // how many of the run's windows lie inside the map, on this side of the ring's seam
      const int reach = (p_.kw - 1) * p_.dx, end_x = x < ring_.seam_x ? ring_.seam_x : in_.w;
      const int fit = x < 0 || x + reach >= end_x ? 0 : (end_x - 1 - reach - x) / p_.sx + 1;
      const bool known = together_ && rows_inside && fit > 0;
      count = known ? std::min(count, fit) : 1;
      const T* lines[kMostRows];
      if (known) ring_.column(y, x, p_.kh, p_.dy, lines);
      // all of a pixel's channels before the next pixel: they lie side by side in memory
      for (c0_ = 0; c0_ < p_.channels; c0_ += kGroup) {
        n_ = std::min(kGroup, p_.channels - c0_);
        if (i + count < end) fetch_next(job_.pixels[i + count], finish);
        if (known)
          (this->*together_[count])(lines, rows);
        else
          one(y, x, rows);
        for (int k = 0; k < count; ++k) finish(job_.pixels[i + k], c0_, n_, rows + k * kRow);
      }
      i += count;
    }
  }

 private:
  void enter(int slot) {
    if (slot == slot_) return;
    slot_ = slot;
    ring_ = job_.ring<const T>(job_.step->inputs[0], slot);
  }

  // Asks for the group's part of the next pixels: the lowest row of their windows (the others have
  // been read for the line above) and what is stored.
  TD_INLINE void fetch_next(const Pixel& p, Finisher<T>& finish) const {
    if (int(p.slot) != slot_) return;
    const int y = std::min(p.y * p_.sy - p_.pad_y + (p_.kh - 1) * p_.dy, in_.h - 1);
    const int x = std::max(p.x * p_.sx - p_.pad_x, 0);
    const int count = std::min<int>(kTogether, p.run);
    const T* const at = ring_.at(y, x) + c0_;
    const int inputs = std::min((count - 1) * p_.sx + p_.kw, in_.w - x);
    for (int k = 0; k < inputs; ++k) fetch(at + k * ring_.pitch, n_);
    for (int k = 0; k < count; ++k) finish.prefetch_at(p, k, c0_, n_);
  }

  using Together = void (DepthwiseTask::*)(const T* const*, float*) const;

  template <int K, int S>
  static const Together* pick() {
    static constexpr Together table[kTogether + 1] = {
        nullptr, &DepthwiseTask::window<K, S, 1>, &DepthwiseTask::window<K, S, 2>,
        &DepthwiseTask::window<K, S, 3>, &DepthwiseTask::window<K, S, 4>};
    return table;
  }

  // P neighbouring windows of K x K with stride S, all inside the map; lines: where the first one's
  // rows begin
  template <int K, int S, int P>
  void window(const T* const* lines, float* rows) const {
    int c = 0;
    for (; c + kWidth <= n_; c += kWidth) vectors<K, S, P, false>(lines, c, kWidth, rows + c);
    if (c < n_) vectors<K, S, P, true>(lines, c, n_ - c, rows + c);
  }

  template <int K, int S, int P, bool kTail>
  TD_INLINE void vectors(const T* const* lines, int c, int lanes, float* rows) const {
    constexpr int kInputs = (P - 1) * S + K;
    const float* w = p_.weights + c0_ + c;
    const V bias = vload(p_.bias + c0_ + c);
    V sum[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p] = bias;
    const ptrdiff_t pitch = ring_.pitch;
#pragma GCC unroll 8
    for (int ky = 0; ky < K; ++ky) {
      const T* at = lines[ky] + c0_ + c;
      V x[kInputs];
#pragma GCC unroll 16
      for (int i = 0; i < kInputs; ++i)
        x[i] = kTail ? vload(at + i * pitch, lanes) : vload(at + i * pitch);
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const V weight = vload(w + size_t(ky * K + kx) * p_.line);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[p] = vfma(x[p * S + kx], weight, sum[p]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) vstore(rows + p * kRow, sum[p]);
  }

  // Any window, also beyond the edge: taps outside the map are left out.
  void one(int y, int x, float* row) const {
    for (int c = 0; c < n_; c += kWidth) vstore(row + c, vload(p_.bias + c0_ + c));
    for (int ky = 0; ky < p_.kh; ++ky) {
      const int iy = y + ky * p_.dy;
      if (iy < 0 || iy >= in_.h) continue;
      for (int kx = 0; kx < p_.kw; ++kx) {
        const int ix = x + kx * p_.dx;
        if (ix < 0 || ix >= in_.w) continue;
        const T* at = ring_.at(iy, ix) + c0_;
        const float* w = p_.weights + size_t(ky * p_.kw + kx) * p_.line + c0_;
        for (int c = 0; c < n_; c += kWidth) {
          const V in = n_ - c < kWidth ? vload(at + c, n_ - c) : vload(at + c);
          vstore(row + c, vfma(in, vload(w + c), vload(row + c)));
        }
      }
    }
  }

  const Job& job_;
  const PackedDepthwise& p_;
  const Value& in_;
  Ring<const T> ring_;
  int slot_ = -1;
  int c0_ = 0, n_ = 0;  // the group
  const Together* together_ = nullptr;
};

template <class T>
void run_depthwise(const Job& job, size_t begin, size_t end) {
  DepthwiseTask<T>(job).run(begin, end);
}

}  // namespace TD_ISA
}  // namespace td
