// What follows every recompute: the epilogue, the gate, and the publishing of a pixel's group.
#pragma once

#include "../kernels.h"
#include "pointwise.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// Room for one group of channels, and for a whole vector behind it.
constexpr int kRow = kGroup + kWidth;

// The epilogue and the publish rule of a step in one slot, where the epilogue is simple: clamps (relu
// is one) and one addition, which are done in registers.
struct Rule {
  struct Range {
    bool on = false;
    float low = 0, high = 0;
    TD_INLINE V operator()(V x) const { return vmin(vset(high), vmax(vset(low), x)); }
  };

  // Completes and gates NV vectors, of which the last has `tail` channels; says whether it published.
  template <class T, int NV>
  TD_INLINE bool complete(V (&x)[NV], const T* other, int tail, bool gated, T* stored) const {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      if (before.on) x[v] = before(x[v]);
      if (other) {
        const V b = v + 1 < NV ? vload(other + v * kWidth) : vload(other + v * kWidth, tail);
        x[v] = first ? vadd(b, x[v]) : vadd(x[v], b);
      }
      if (after.on) x[v] = after(x[v]);
    }
    if (gated && !moved<T, NV>(x, tail, stored) && !forced) return false;
#pragma GCC unroll 8
    for (int v = 0; v + 1 < NV; ++v) vstore(stored + v * kWidth, x[v]);
    vstore(stored + (NV - 1) * kWidth, x[NV - 1], tail);
    return true;
  }

  // The publish rule (ops/gate.py) on NV vectors; NaN moves.
  template <class T, int NV>
  TD_INLINE bool moved(const V (&x)[NV], int tail, const T* stored) const {
    V now[NV], old[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      // numbers behind the tail may be anything (a clamp of 0)
      now[v] = as_stored<T>(v + 1 < NV ? x[v] : vfirst(x[v], tail));
      old[v] = v + 1 < NV ? vload(stored + v * kWidth) : vload(stored + v * kWidth, tail);
    }
    if (compare) {
      Mask differs = vne(now[0], old[0]);
#pragma GCC unroll 8
      for (int v = 1; v < NV; ++v) differs = vor(differs, vne(now[v], old[v]));
      return vany(differs);
    }
    V sum = vzero();
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const V d = vsub(now[v], old[v]);
      sum = is_max ? vmax_nan(sum, vabs(d)) : vfma(d, d, sum);
    }
    return beyond(sum, (NV - 1) * kWidth + tail);
  }

  // sum: squares of the differences of n numbers, or their largest magnitudes
  TD_INLINE bool beyond(V sum, int n) const {
    if (!is_max) return !(vsum(sum) <= square * float(n));
    return vany(vne(sum, sum)) || !(vlargest(sum) <= threshold);
  }

  Range before, after;        // the addition
  bool first = false;         // of the addition: the residual is the left operand
  bool compare = true;        // threshold 0: values are compared
  bool forced = false, is_max = false;
  float threshold = 0, square = 0;
};

// Completes pixels of one job: construct it for a task, call it for each pixel and group.
// T: how the output is stored.
template <class T>
class Finisher {
 public:
  explicit Finisher(const Job& job)
      : job_(job), step_(*job.step) {
    find_simple();
    rule_.forced = job.forced, rule_.is_max = job.norm_is_max;
  }
  Finisher(const Finisher&) = delete;
  Finisher& operator=(const Finisher&) = delete;
  ~Finisher() { count(); }

  // Asks for what completing a pixel will read, while there is something else to do.
  TD_INLINE void prefetch(const Pixel& p, int c0, int n) {
    if (int(p.slot) != slot_) enter(p.slot);
    fetch(out_.at(p.y, p.x) + c0, n);
    if (residual_) fetch(other_.at(p.y, p.x) + c0, n);
  }

  // The same for the pixel `right` places to the right, of a slot that may be another than the last's.
  TD_INLINE void prefetch_at(const Pixel& p, int right, int c0, int n) const {
    if (int(p.slot) != slot_) return;
    fetch(out_.at(p.y, p.x) + right * out_.pitch + c0, n);
  }

  // Whether the epilogue is done in registers; then a pixel may be completed by others, with `rule`,
  // at the places that `place` finds, and is reported to `mark` where it was published.
  bool simple() const { return simple_; }
  bool adds() const { return residual_ != nullptr; }
  const Rule& rule(const Pixel& p) {
    if (int(p.slot) != slot_) enter(p.slot);
    return rule_;
  }
  TD_INLINE void place(const Pixel& p, T** stored, const T** other, bool* gated) {
    if (int(p.slot) != slot_) enter(p.slot);
    *stored = out_.at(p.y, p.x);
    if (residual_) *other = other_.at(p.y, p.x);
    *gated = all_seen_ || seen_.has(p.y, p.x);
  }
  TD_INLINE void mark(const Pixel& p) {
    if (int(p.slot) != slot_) enter(p.slot);
    uint64_t* const word = mask_ + size_t(p.y) * job_.words + p.x / 64;
    if (word != word_) {
      flush();
      word_ = word;
    }
    bits_ |= uint64_t(1) << (p.x % 64);
    ++groups_;
  }

  // row: channels c0 .. c0 + n of the recomputed pixel, in float32; kRow of them may be written
  TD_INLINE void operator()(const Pixel& p, int c0, int n, float* row) {
    if (int(p.slot) != slot_) enter(p.slot);
    T* const stored = out_.at(p.y, p.x) + c0;
    const bool gated = all_seen_ || seen_.has(p.y, p.x);
    if (simple_ && n <= kFew * kWidth) {
      const T* const other = residual_ ? other_.at(p.y, p.x) + c0 : nullptr;
      if (few(other, n, row, gated, stored)) mark(p);
      return;
    }
    epilogue(p, c0, n, row);
    if (gated && !moved(row, stored, n) && !job_.forced) return;
    int c = 0;
    for (; c + kWidth <= n; c += kWidth) vstore(stored + c, vload(row + c));
    if (c < n) vstore(stored + c, vload(row + c), n - c);
    mark(p);
  }

 private:
  // vectors of a group that stay in registers from the sum to the store
  static constexpr int kFew = kGroup / kWidth <= 8 ? kGroup / kWidth : 8;

  // Clamps and one addition are done in registers; relu is a clamp.
  void find_simple() {
    simple_ = true;
    for (const Part& part : step_.epilogue) {
      const bool add = part.residual && static_cast<Fn2>(part.fn) == Fn2::add && part.args[0] == 1;
      const bool relu = !part.residual && static_cast<Fn>(part.fn) == Fn::relu;
      const bool clamp = !part.residual && static_cast<Fn>(part.fn) == Fn::clamp;
      if (add && !residual_) {
        residual_ = &part;
        rule_.first = part.first;
      } else if (relu || clamp) {
        Rule::Range& range = residual_ ? rule_.after : rule_.before;
        simple_ = simple_ && !range.on;
        range = {true, relu ? 0.0f : part.args[0], relu ? INFINITY : part.args[1]};
      } else {
        simple_ = false;
      }
    }
  }

  TD_INLINE bool few(const T* other, int n, const float* row, bool gated, T* stored) const {
    const int nv = (n + kWidth - 1) / kWidth, tail = n - (nv - 1) * kWidth;
    if constexpr (kFew >= 8) {
      if (nv == 8) return few<8>(other, tail, row, gated, stored);
      if (nv == 7) return few<7>(other, tail, row, gated, stored);
      if (nv == 6) return few<6>(other, tail, row, gated, stored);
      if (nv == 5) return few<5>(other, tail, row, gated, stored);
    }
    if (nv == 4) return few<4>(other, tail, row, gated, stored);
    if (nv == 3) return few<3>(other, tail, row, gated, stored);
    if (nv == 2) return few<2>(other, tail, row, gated, stored);
    return few<1>(other, tail, row, gated, stored);
  }

  template <int NV>
  TD_INLINE bool few(const T* other, int tail, const float* row, bool gated, T* stored) const {
    V x[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) x[v] = vload(row + v * kWidth);
    return rule_.complete<T, NV>(x, other, tail, gated, stored);
  }

  static const float* slope(const Part& part, int c0) {
    return part.slope.empty() ? nullptr : part.slope.data() + (part.slope.size() > 1 ? c0 : 0);
  }

  // apart from the loops over pixels, which it would only make longer
  __attribute__((noinline)) void enter(int slot) {
    count();
    slot_ = slot;
    out_ = job_.ring<T>(step_.output, slot);
    mask_ = job_.changed[slot];
    seen_ = seen(*job_.program, job_.slots[slot], step_.output);
    all_seen_ = !job_.slots[slot].whole && !job_.slots[slot].moved;
    if (residual_) other_ = job_.ring<const T>(step_.inputs[residual_->input], slot);
    const double threshold = job_.threshold(slot);
    rule_.threshold = float(threshold);
    rule_.square = float(threshold * threshold);
    rule_.compare = threshold == 0;
  }

  void epilogue(const Pixel& p, int c0, int n, float* row) const {
    for (const Part& part : step_.epilogue) {
      if (!part.residual) {
        apply_pointwise(part.fn, part.args, slope(part, c0), row, n);
        continue;
      }
      const T* other = job_.ring<const T>(step_.inputs[part.input], slot_).at(p.y, p.x) + c0;
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
    if (rule_.compare) {
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
      sum = rule_.is_max ? vmax_nan(sum, vabs(d)) : vfma(d, d, sum);
    }
    return rule_.beyond(sum, n);
  }

  // other threads may publish other pixels of the same word
  void flush() {
    if (!bits_) return;
    const uint64_t before = __atomic_fetch_or(word_, bits_, __ATOMIC_RELAXED);
    px_ += __builtin_popcountll(bits_ & ~before);
    bits_ = 0;
  }

  // adds what was published to what the slot and its step have
  void count() {
    flush();
    if (!groups_) return;
    const td_slot& slot = job_.slots[slot_];
    const size_t step = &step_ - job_.program->steps.data();
    __atomic_store_n(job_.any + slot_, uint8_t(1), __ATOMIC_RELAXED);
    __atomic_fetch_add(slot.published_px + step, px_, __ATOMIC_RELAXED);
    __atomic_fetch_add(slot.published_groups + step, groups_, __ATOMIC_RELAXED);
    px_ = groups_ = 0;
  }

  const Job& job_;
  const Step& step_;
  bool simple_ = false;
  const Part* residual_ = nullptr;
  Rule rule_;
  int slot_ = -1;
  Ring<T> out_;
  Ring<const T> other_;
  Rect seen_{0, 0, 0, 0};
  bool all_seen_ = false;
  uint64_t* mask_ = nullptr;
  uint64_t* word_ = nullptr;
  uint64_t bits_ = 0;
  // pixels and groups published in this slot, not counted yet
  int64_t px_ = 0, groups_ = 0;
};

}  // namespace TD_ISA
}  // namespace td
