// The input gate: frames are normalised and compared row by row, and what moved is published
// (ops/gate.py, ops/preprocess.py).
#pragma once

#include "../kernels.h"
#include "../masks.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// One row of the frame as float32 [W, C], in the frame's own unit and channel order of the network.
inline void read_row(const Program& program, const td_slot& slot, int y, float* out) {
  const Input& in = program.input;
  const int64_t sx = slot.stride_x;
  for (int c = 0; c < in.c; ++c) {
    const int64_t at = int64_t(y) * slot.stride_y + (in.reversed ? in.c - 1 - c : c) * slot.stride_c;
    if (slot.frame_is_float) {
      const float* from = static_cast<const float*>(slot.frame) + at;
      for (int x = 0; x < in.w; ++x) out[x * in.c + c] = from[x * sx];
    } else {
      const uint8_t* from = static_cast<const uint8_t*>(slot.frame) + at;
      for (int x = 0; x < in.w; ++x) out[x * in.c + c] = from[x * sx];
    }
  }
}

// Numbers per channel, repeated: from any channel on there is a whole vector of them.
struct Pattern {
  std::vector<float> scale, shift, weight;
  Pattern(const Input& in, bool is_float) {
    for (int i = 0; i < in.c + kWidth; ++i) {
      scale.push_back((is_float ? in.scale_f32 : in.scale_u8)[i % in.c]);
      shift.push_back((is_float ? in.shift_f32 : in.shift_u8)[i % in.c]);
      weight.push_back(in.to_full_scale[i % in.c]);
    }
  }
};

// Whether bytes of the frame lie as the network's input does.
inline bool is_plain(const Program& program, const td_slot& slot) {
  return !slot.frame_is_float && slot.stride_c == 1 && slot.stride_x == program.input.c &&
         !program.input.reversed;
}

// Numbers i0 .. i1 of row y of the network's input [W, C], as they would be published.
// row: what read_row gave, unused where the frame is plain
template <class T, class Out>
TD_INLINE void normalise(const Program& program, const td_slot& slot, const Pattern& pattern, bool plain,
                         int y, int i0, int i1, const float* row, Out* out) {
  const int channels = program.input.c, step = kWidth % channels;
  const uint8_t* bytes = static_cast<const uint8_t*>(slot.frame) + int64_t(y) * slot.stride_y;
  int i = i0, c = i0 % channels;
  // the last pixels of a frame have no whole vector of bytes behind them
  for (; i + kWidth <= i1; i += kWidth) {
    const V u = plain ? vload(bytes + i) : vload(row + i);
    vstore(out + i, as_stored<T>(vfma(u, vload(&pattern.scale[c]), vload(&pattern.shift[c]))));
    c += step;
    if (c >= channels) c -= channels;
  }
  for (; i < i1; ++i) {
    const float u = plain ? float(bytes[i]) : row[i];
    const float x = std::fma(u, pattern.scale[i % channels], pattern.shift[i % channels]);
    out[i] = from_float<Out>(to_float(from_float<T>(x)));
  }
}

template <class T>
void normalise_row(const InputJob& job, const Pattern& pattern, int y, float* out) {
  const bool plain = is_plain(*job.program, *job.slot);
  if (!plain) read_row(*job.program, *job.slot, y, out);
  const int n = job.program->input.w * job.program->input.c;
  normalise<T>(*job.program, *job.slot, pattern, plain, y, 0, n, out, out);
}

// out[x]: sum over the channels of row [w, channels]
inline void add_channels(const float* __restrict row, int w, int channels, float* __restrict out) {
  if (channels == 1) {
    std::memcpy(out, row, sizeof(float) * w);
    return;
  }
  if (channels == 3) {
    // the compiler makes vectors of this one
    for (int x = 0; x < w; ++x) out[x] = row[3 * x] + row[3 * x + 1] + row[3 * x + 2];
    return;
  }
  for (int x = 0; x < w; ++x) {
    float sum = 0;
    for (int c = 0; c < channels; ++c) sum += row[x * channels + c];
    out[x] = sum;
  }
}

// Per pixel of row y: mean over the channels of |new - stored|, as a share of full scale.
template <class T>
void row_difference(const InputJob& job, const Pattern& pattern, int y, float* row, float* out) {
  const Input& in = job.program->input;
  const int n = in.w * in.c, step = kWidth % in.c;
  const T* stored =
      static_cast<const T*>(job.slot->buffers[job.program->values[in.value].buffer]) + size_t(y) * n;
  auto differ = [&](int i, int c, V now, V old) {
    vstore(row + i, vmul(vabs(vsub(now, old)), vload(&pattern.weight[c])));
  };
  int i = 0, c = 0;
  auto forward = [&] {
    i += kWidth;
    c += step;
    if (c >= in.c) c -= in.c;
  };
  if (is_plain(*job.program, *job.slot)) {
    // normalised on the way; the last pixels of a frame have no whole vector of bytes behind them
    const uint8_t* bytes = static_cast<const uint8_t*>(job.slot->frame) + y * job.slot->stride_y;
    for (; i + kWidth <= n; forward()) {
      const V now = vfma(vload(bytes + i), vload(&pattern.scale[c]), vload(&pattern.shift[c]));
      differ(i, c, as_stored<T>(now), vload(stored + i));
    }
    normalise<T>(*job.program, *job.slot, pattern, true, y, i, n, row, row);
  } else {
    normalise_row<T>(job, pattern, y, row);
  }
  for (; i < n; forward()) differ(i, c, vload(row + i), vload_some(stored + i, n - i));
  add_channels(row, in.w, in.c, out);
}

// Marks rows y0 .. y1: pixels whose 3x3 box moved by more than the threshold (threshold 0: pixels
// that differ at all).
template <class T>
void find_hot(const InputJob& job, int y0, int y1, Scratch& scratch) {
  if (y0 >= y1) return;
  const Input& in = job.program->input;
  const int h = in.h, w = in.w, n = in.w * in.c;
  const Pattern pattern(in, job.slot->frame_is_float);
  const size_t line = size_t(round_up(w, kWidth)) + 2 * kWidth;
  float* const row = static_cast<float*>(scratch.get((n + 2 * kWidth + 6 * line) * sizeof(float)));
  float* const lines = row + n + kWidth;
  if (!(job.slot->input_threshold > 0)) {
    for (int y = y0; y < y1; ++y) {
      uint64_t* const hot = job.hot + size_t(y) * job.words;
      std::fill_n(hot, job.words, 0);
      normalise_row<T>(job, pattern, y, row);
      const T* stored =
          static_cast<const T*>(job.slot->buffers[job.program->values[in.value].buffer]) +
          size_t(y) * n;
      for (int i = 0; i < n; i += kWidth) {
        const int m = n - i < kWidth ? n - i : kWidth;
        if (!vany(vne(vload(row + i, m), vload(stored + i, m)))) continue;
        for (int k = i; k < i + m; ++k)
          if (!(row[k] == to_float(stored[k])))
            hot[k / in.c / 64] |= uint64_t(1) << (k / in.c % 64);
      }
    }
    return;
  }
  // a ring of three rows of horizontal sums; `flat` has a place before and behind for the edges, and
  // whole vectors are read and written everywhere
  float* const flat = lines + 3 * line + kWidth;
  float* const limits = lines + 4 * line + kWidth;
  auto sums = [&](int y) { return lines + (y % 3) * line; };
  auto load = [&](int y) {
    if (y < 0 || y >= h) return;
    row_difference<T>(job, pattern, y, row, flat);
    flat[-1] = flat[w] = 0;
    float* const out = sums(y);
    for (int x = 0; x < w; x += kWidth)
      vstore(out + x, vadd(vadd(vload(flat + x - 1), vload(flat + x)), vload(flat + x + 1)));
  };
  // limit per row of the box: the threshold times its pixels that exist
  const float threshold = float(job.slot->input_threshold);
  for (int x = 0; x < w; ++x) limits[x] = threshold * float(1 + (x > 0) + (x + 1 < w));
  load(y0 - 1);
  load(y0);
  for (int y = y0; y < y1; ++y) {
    load(y + 1);
    uint64_t* const hot = job.hot + size_t(y) * job.words;
    std::fill_n(hot, job.words, 0);
    const int first = y > 0 ? y - 1 : y, last = y + 1 < h ? y + 1 : y;
    const float *a = sums(first), *b = sums(y), *c = sums(last);
    const bool above = first != y, below = last != y;
    const V rows = vset(float(1 + above + below));
    for (int x = 0; x < w; x += kWidth) {
      V box = vload(b + x);
      if (above) box = vadd(box, vload(a + x));
      if (below) box = vadd(box, vload(c + x));
      // written this way round, NaN is hot
      const uint64_t cold = vbits(vle(box, vmul(rows, vload(limits + x))));
      hot[x / 64] |= (~cold & ((uint64_t(1) << kWidth) - 1)) << (x % 64);
    }
    hot[job.words - 1] &= tail_mask(w);
  }
}

// Writes the marked pixels of rows y0 .. y1 to the input's state.
template <class T>
void publish_input(const InputJob& job, int y0, int y1, Scratch& scratch) {
  const Input& in = job.program->input;
  const int n = in.w * in.c;
  const Pattern pattern(in, job.slot->frame_is_float);
  float* const row = static_cast<float*>(scratch.get((n + kWidth) * sizeof(float)));
  T* const state = static_cast<T*>(job.slot->buffers[job.program->values[in.value].buffer]);
  const bool plain = is_plain(*job.program, *job.slot);
  for (int y = y0; y < y1; ++y) {
    const uint64_t* const changed = job.changed + size_t(y) * job.words;
    if (!any_bit(changed, job.words)) continue;
    if (!plain) read_row(*job.program, *job.slot, y, row);
    for_runs(changed, job.words, [&](int x0, int x1) {
      normalise<T>(*job.program, *job.slot, pattern, plain, y, x0 * in.c, x1 * in.c, row,
                   state + size_t(y) * n);
    });
  }
}

}  // namespace TD_ISA
}  // namespace td
