// Operations that compute a pixel from the one at its own place (ops/pointwise.py), and copies.
#pragma once

#include "pixels.h"

namespace td {
namespace TD_ISA {

template <class T>
struct Copy {
  explicit Copy(const Job& job) : in(job, 0) {}
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) { from = in.at(p.y, p.x); }
  TD_INLINE void operator()(int c0, int n, float* row) const { load_row(from + c0, n, row); }

  Map<T> in;
  const T* from = nullptr;
};

template <class T>
struct Pointwise : Copy<T> {
  explicit Pointwise(const Job& job) : Copy<T>(job), params(job.step->params) {}
  TD_INLINE void operator()(int c0, int n, float* row) const {
    load_row(this->from + c0, n, row);
    const std::vector<float>& slope = params.arrays[0];
    apply_pointwise(int(params.ints[0]), params.floats.data(),
                    slope.empty() ? nullptr : slope.data() + c0, row, n);
  }

  const Params& params;
};

template <class T>
struct Affine : Copy<T> {
  explicit Affine(const Job& job)
      : Copy<T>(job), scale(job.step->params.arrays[0].data()),
        shift(job.step->params.arrays[1].data()) {}
  TD_INLINE void operator()(int c0, int n, float* row) const {
    for (int c = 0; c < n; c += kWidth) {
      const int at = c0 + c, left = n - c;
      vstore(row + c, vfma(vload_some(this->from + at, left), vload_some(scale + at, left),
                           vload_some(shift + at, left)));
    }
  }

  const float *scale, *shift;
};

// One side of a function of two maps; a side of one row, column or channel counts for all of them.
template <class T>
struct Operand {
  Operand(int h, int w, int c, int channels)
      : tall(h > 1), wide(w > 1), single(c == 1 && channels > 1) {}
  TD_INLINE void at(const Ring<const T>& ring, const Pixel& p) {
    from = ring.at(tall ? p.y : 0, wide ? p.x : 0);
  }
  TD_INLINE V load(int c, int left) const {
    return single ? vset(to_float(*from)) : vload_some(from + c, left);
  }

  const bool tall, wide, single;
  const T* from = nullptr;
};

template <class T>
struct Binary {
  explicit Binary(const Job& job)
      : maps{{job, 0}, {job, 1}}, sides{side(maps[0], job), side(maps[1], job)},
        fn(int(job.step->params.ints[0])), alpha(job.step->params.floats[0]) {}
  static Operand<T> side(const Map<T>& in, const Job& job) {
    return {in.h, in.w, in.c, output_of(job).c};
  }
  void enter(int slot) {
    for (Map<T>& in : maps) in.enter(slot);
  }
  TD_INLINE void at(const Pixel& p) {
    for (int i = 0; i < 2; ++i) sides[i].at(maps[i].ring, p);
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    for (int c = 0; c < n; c += kWidth) {
      const V a = sides[0].load(c0 + c, n - c), b = sides[1].load(c0 + c, n - c);
      vstore(row + c, binary(fn, alpha, a, b));
    }
  }

  Map<T> maps[2];
  Operand<T> sides[2];
  const int fn;
  const float alpha;
};

template <class T>
struct Constant : Copy<T> {
  explicit Constant(const Job& job)
      : Copy<T>(job), fn(int(ints(job)[0])), first(ints(job)[1] != 0),
        numbers(ints(job)[2] ? job.step->params.floats.data() : job.step->params.arrays[0].data(),
                int(ints(job)[3]), int(ints(job)[4]), int(ints(job)[5]), 0, 0),
        side(int(ints(job)[3]), int(ints(job)[4]), int(ints(job)[5]), output_of(job).c) {}
  static const int64_t* ints(const Job& job) { return job.step->params.ints.data(); }
  TD_INLINE void at(const Pixel& p) {
    Copy<T>::at(p);
    side.at(numbers, p);
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    for (int c = 0; c < n; c += kWidth) {
      const V x = vload_some(this->from + c0 + c, n - c), constant = side.load(c0 + c, n - c);
      vstore(row + c, first ? binary(fn, 1, constant, x) : binary(fn, 1, x, constant));
    }
  }

  const int fn;
  const bool first;
  const Ring<const float> numbers;
  Operand<float> side;
};

// Over all channels of the pixel: a row of scratch memory holds them.
template <class T, bool kLog>
struct Softmax : Copy<T> {
  Softmax(const Job& job, Scratch& scratch)
      : Copy<T>(job), padded(round_up(this->in.c, kWidth)),
        all(static_cast<float*>(scratch.get(sizeof(float) * size_t(padded)))) {}

  void at(const Pixel& p) {
    Copy<T>::at(p);
    const int channels = this->in.c;
    load_row(this->from, channels, all);
    // nothing counts behind the last channel
    std::fill(all + channels, all + padded, -INFINITY);
    V most = vset(-INFINITY);
    for (int c = 0; c < padded; c += kWidth) most = vmax(most, vload(all + c));
    const V largest = vset(vlargest(most));
    V sums = vzero();
    for (int c = 0; c < padded; c += kWidth) {
      const V x = vsub(vload(all + c), largest), e = vexp(x);
      sums = vadd(sums, e);
      vstore(all + c, kLog ? x : e);
    }
    sum = kLog ? std::log(vsum(sums)) : vsum(sums);
  }

  TD_INLINE void operator()(int c0, int n, float* row) const {
    for (int c = 0; c < n; c += kWidth) {
      const V x = vload(all + c0 + c);
      vstore(row + c, kLog ? vsub(x, vset(sum)) : vdiv(x, vset(sum)));
    }
  }

  const int padded;
  float* const all;
  float sum = 0;
};

}  // namespace TD_ISA
}  // namespace td
