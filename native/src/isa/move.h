// Operations that move numbers, and bilinear resize (ops/move.py, ops/resize.py).
#pragma once

#include "pixels.h"

namespace td {
namespace TD_ISA {

template <class T>
struct Remap {
  explicit Remap(const Job& job)
      : in(job, 0), rows(index(job, 0)), cols(index(job, 1)), channels(index(job, 2)),
        fill(job.step->params.floats[0]) {}
  // null: the identity
  static const int32_t* index(const Job& job, int axis) {
    const std::vector<int32_t>& index = job.step->params.indices[axis];
    return index.empty() ? nullptr : index.data();
  }
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) {
    const int y = rows ? rows[p.y] : p.y, x = cols ? cols[p.x] : p.x;
    from = y < 0 || x < 0 ? nullptr : in.at(y, x);
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    if (!from)
      std::fill_n(row, n, fill);
    else if (!channels)
      load_row(from + c0, n, row);
    else
      for (int c = 0; c < n; ++c) row[c] = to_float(from[channels[c0 + c]]);
  }

  Map<T> in;
  const int32_t *rows, *cols, *channels;
  const float fill;
  const T* from = nullptr;
};

template <class T>
struct PixelShuffle {
  explicit PixelShuffle(const Job& job) : in(job, 0), factor(int(job.step->params.ints[0])) {}
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) {
    from = in.at(p.y / factor, p.x / factor) + p.y % factor * factor + p.x % factor;
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    const int step = factor * factor;
    for (int c = 0; c < n; ++c) row[c] = to_float(from[(c0 + c) * step]);
  }

  Map<T> in;
  const int factor;
  const T* from = nullptr;
};

template <class T>
struct PixelUnshuffle {
  explicit PixelUnshuffle(const Job& job) : in(job, 0), factor(int(job.step->params.ints[0])) {}
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) { y = p.y * factor, x = p.x * factor; }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    const int places = factor * factor;
    for (int k = 0; k < std::min(n, places); ++k) {
      const int place = (c0 + k) % places;
      const T* from = in.at(y + place / factor, x + place % factor) + (c0 + k) / places;
      for (int i = k; i < n; i += places) row[i] = to_float(*from++);
    }
  }

  Map<T> in;
  const int factor;
  int y = 0, x = 0;
};

template <class T>
struct Reshape {
  // How a state holds numbers in the model's order: maps [C, H, W], all else one vector.
  struct Layout {
    explicit Layout(const int64_t* ints)
        : is_map(ints[0] == 3), h(is_map ? int(ints[2]) : 1), w(is_map ? int(ints[3]) : 1) {}
    const bool is_map;
    const int h, w;
  };
  explicit Reshape(const Job& job)
      : in(job, 0), shape_in(job.step->params.ints.data()),
        shape_out(job.step->params.ints.data() + 1 + job.step->params.ints[0]) {}
  void enter(int slot) { in.enter(slot); }
  void at(const Pixel& p) { place = p.y * shape_out.w + p.x; }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    const int step = shape_out.h * shape_out.w, area = shape_in.h * shape_in.w;
    for (int k = 0; k < n; ++k) {
      const int number = (c0 + k) * step + place;
      // a vector has the area 1: its numbers are channels
      const int c = number / area, px = number - c * area;
      row[k] = to_float(in.at(px / shape_in.w, px % shape_in.w)[c]);
    }
  }

  Map<T> in;
  const Layout shape_in, shape_out;
  int place = 0;
};

template <class T>
struct Bilinear {
  explicit Bilinear(const Job& job) : in(job, 0), params(job.step->params) {}
  void enter(int slot) { in.enter(slot); }
  TD_INLINE void at(const Pixel& p) {
    wy = params.arrays[0][p.y], wx = params.arrays[1][p.x];
    const int y = params.indices[0][p.y], x = params.indices[2][p.x];
    const int below = params.indices[1][p.y], right = params.indices[3][p.x];
    corners[0] = in.at(y, x), corners[1] = in.at(y, right);
    corners[2] = in.at(below, x), corners[3] = in.at(below, right);
  }
  TD_INLINE void operator()(int c0, int n, float* row) const {
    // what has no weight is no part of the footprint either
    const auto blend = [](V a, V b, float part) {
      return part > 0 ? vfma(vset(part), b, vmul(vset(1 - part), a)) : a;
    };
    for (int c = 0; c < n; c += kWidth) {
      const auto load = [&](int i) { return vload_some(corners[i] + c0 + c, n - c); };
      vstore(row + c, blend(blend(load(0), load(1), wx), blend(load(2), load(3), wx), wy));
    }
  }

  Map<T> in;
  const Params& params;
  float wy = 0, wx = 0;
  const T* corners[4] = {};
};

}  // namespace TD_ISA
}  // namespace td
