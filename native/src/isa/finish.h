// What follows every recompute: the epilogue, the gate, and the publishing of a pixel's group.
#pragma once

#include "../kernels.h"
#include "pointwise.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// Room for one group of channels, and for a whole vector behind it.
constexpr int kRow = kGroup + kWidth;

// Completes pixels of one job: construct it for a task, call it for each pixel and group.
// T: how the output is stored.
template <class T>
class Finisher {
 public:
  explicit Finisher(const Job& job)
      : job_(job), step_(*job.step), pitch_(job.pitch(step_.output)),
        w_(job.program->values[step_.output].w) {
    single_ = step_.epilogue.size() == 1 && !step_.epilogue[0].residual ? &step_.epilogue[0] : nullptr;
  }
  Finisher(const Finisher&) = delete;
  Finisher& operator=(const Finisher&) = delete;
  ~Finisher() { flush(); }

  // row: channels c0 .. c0 + n of the recomputed pixel, in float32; kRow of them may be written
  TD_INLINE void operator()(const Pixel& p, int c0, int n, float* row) {
    if (int(p.slot) != slot_) enter(p.slot);
    const size_t at = size_t(p.y) * w_ + p.x;
    if (single_)
      apply_pointwise(single_->fn, single_->args, slope(*single_, c0), row, n);
    else if (!step_.epilogue.empty())
      epilogue(at, c0, n, row);
    T* const stored = out_ + at * pitch_ + c0;
    if (publish_ != kWhole && !moved(row, stored, n) && publish_ != kForced) return;
    int c = 0;
    for (; c + kWidth <= n; c += kWidth) vstore(stored + c, vload(row + c));
    if (c < n) vstore(stored + c, vload(row + c), n - c);
    mark(p);
  }

 private:
  static const float* slope(const Part& part, int c0) {
    return part.slope.empty() ? nullptr : part.slope.data() + (part.slope.size() > 1 ? c0 : 0);
  }

  void enter(int slot) {
    flush();
    slot_ = slot;
    out_ = job_.base<T>(step_.output, slot);
    mask_ = job_.changed[slot];
    publish_ = job_.publish[slot];
    const double threshold = job_.threshold(slot);
    threshold_ = float(threshold);
    square_ = float(threshold * threshold);
    compare_ = threshold == 0;
  }

  void epilogue(size_t at, int c0, int n, float* row) const {
    for (const Part& part : step_.epilogue) {
      if (!part.residual) {
        apply_pointwise(part.fn, part.args, slope(part, c0), row, n);
        continue;
      }
      const int value = step_.inputs[part.input];
      const T* other = job_.base<T>(value, slot_) + at * job_.pitch(value) + c0;
      for (int c = 0; c < n; c += kWidth) {
        const V a = vload(row + c);
        const V b = n - c >= kWidth ? vload(other + c) : vload(other + c, n - c);
        vstore(row + c, part.first ? binary(part.fn, part.args[0], b, a)
                                   : binary(part.fn, part.args[0], a, b));
      }
    }
  }

  // The publish rule (ops/gate.py) on one group; NaN moves.
  TD_INLINE bool moved(const float* row, const T* stored, int n) const {
    if (compare_) {
      for (int c = 0; c < n; c += kWidth) {
        const int m = n - c < kWidth ? n - c : kWidth;
        if (vany(vne(as_stored<T>(m < kWidth ? vload(row + c, m) : vload(row + c)),
                     m < kWidth ? vload(stored + c, m) : vload(stored + c))))
          return true;
      }
      return false;
    }
    V sum = vzero();
    for (int c = 0; c < n; c += kWidth) {
      const int m = n - c < kWidth ? n - c : kWidth;
      const V d = vsub(as_stored<T>(m < kWidth ? vload(row + c, m) : vload(row + c)),
                       m < kWidth ? vload(stored + c, m) : vload(stored + c));
      sum = job_.norm_is_max ? vmax_nan(sum, vabs(d)) : vfma(d, d, sum);
    }
    if (!job_.norm_is_max) return !(vsum(sum) <= square_ * float(n));
    return vany(vne(sum, sum)) || !(vlargest(sum) <= threshold_);
  }

  TD_INLINE void mark(const Pixel& p) {
    uint64_t* const word = mask_ + size_t(p.y) * job_.words + p.x / 64;
    if (word != word_) {
      flush();
      word_ = word;
    }
    bits_ |= uint64_t(1) << (p.x % 64);
  }

  // other threads may publish other pixels of the same word
  void flush() {
    if (!bits_) return;
    __atomic_fetch_or(word_, bits_, __ATOMIC_RELAXED);
    __atomic_store_n(job_.any + slot_, uint8_t(1), __ATOMIC_RELAXED);
    bits_ = 0;
  }

  const Job& job_;
  const Step& step_;
  const int pitch_, w_;
  const Part* single_;
  int slot_ = -1;
  T* out_ = nullptr;
  uint64_t* mask_ = nullptr;
  uint64_t* word_ = nullptr;
  uint64_t bits_ = 0;
  uint8_t publish_ = 0;
  float threshold_ = 0, square_ = 0;
  bool compare_ = true;
};

}  // namespace TD_ISA
}  // namespace td
