// The input gate: frames are normalised and compared row by row, and what moved is published
// (ops/gate.py, ops/preprocess.py).
#pragma once

#include "../kernels.h"
#include "../masks.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// Which channel of the frame the network's channel c is; a fourth one, alpha, stays.
inline int source_channel(const Input& in, int c) { return in.bgr && c < 3 ? 2 - c : c; }

// One row of the frame as float32 [W, C], in the frame's own unit and channel order of the network.
inline void read_row(const Program& program, const td_slot& slot, int y, float* out) {
  const Input& in = program.input;
  const int64_t sx = slot.stride_x;
  for (int c = 0; c < in.c; ++c) {
    const int64_t at = int64_t(y) * slot.stride_y + source_channel(in, c) * slot.stride_c;
    if (slot.frame_is_float) {
      const float* from = static_cast<const float*>(slot.frame) + at;
      for (int x = 0; x < in.w; ++x) out[x * in.c + c] = from[x * sx];
    } else {
      const uint8_t* from = static_cast<const uint8_t*>(slot.frame) + at;
      for (int x = 0; x < in.w; ++x) out[x * in.c + c] = from[x * sx];
    }
  }
}

template <class T>
Ring<T> input_ring(const InputJob& job) {
  return ring_of<T>(*job.program, *job.slot, job.program->input.value);
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
         !program.input.bgr;
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
  const int step = kWidth % in.c;
  const bool plain = is_plain(*job.program, *job.slot);
  if (!plain) normalise_row<T>(job, pattern, y, row);
  const auto compare = [&](int x0, int x1, const T* stored) {
    const int begin = x0 * in.c, n = (x1 - x0) * in.c;
    float* const numbers = row + begin;
    const auto differ = [&](int c, V now, V old) {
      return vmul(vabs(vsub(now, old)), vload(&pattern.weight[c]));
    };
    int i = 0, c = 0;
    auto forward = [&] {
      i += kWidth;
      c += step;
      if (c >= in.c) c -= in.c;
    };
    if (plain) {
      // normalised on the way; the last pixels of a frame have no whole vector of bytes behind them
      const uint8_t* bytes =
          static_cast<const uint8_t*>(job.slot->frame) + y * job.slot->stride_y + begin;
      for (; i + kWidth <= n; forward()) {
        const V now = vfma(vload(bytes + i), vload(&pattern.scale[c]), vload(&pattern.shift[c]));
        vstore(numbers + i, differ(c, as_stored<T>(now), vload(stored + i)));
      }
      normalise<T>(*job.program, *job.slot, pattern, true, y, begin + i, begin + n, row, row);
    }
    for (; i + kWidth <= n; forward())
      vstore(numbers + i, differ(c, vload(numbers + i), vload(stored + i)));
    if (i < n) {
      const V now = vload(numbers + i, n - i), old = vload(stored + i, n - i);
      vstore(numbers + i, differ(c, now, old), n - i);
    }
  };
  input_ring<const T>(job).stretches(y, 0, in.w, compare);
  add_channels(row, in.w, in.c, out);
}

// Unmarks the pixels of row y that cannot be compared: unseen ones, and those without content. rows:
// as long as a row.
inline void keep_comparable(const InputJob& job, int y, uint64_t* row, uint64_t* rows) {
  const int w = job.program->input.w;
  keep_valid(*job.slot, y, w, row, rows);
  std::fill_n(rows, job.words, 0);
  mark_outside(job.seen, y, w, rows);
  for (int k = 0; k < job.words; ++k) row[k] &= ~rows[k];
}

// The 3x3 boxes of the input gate. The mean over a box is beyond the threshold where the sum of
// (difference - threshold) over its pixels is beyond 0: pixels that do not count have 0 there. The
// sums along the row of three rows are kept; for cells, those down the columns of a row of cells.
template <class T>
class Boxes {
 public:
  Boxes(const InputJob& job, const Pattern& pattern, float limit, Scratch& scratch)
      : job_(job), pattern_(pattern), h_(job.program->input.h), w_(job.program->input.w),
        limit_(vset(limit)), all_(!job.slot->valid && !job.slot->moved),
        line_(size_t(round_up(w_, kWidth)) + 2 * kWidth) {
    const size_t n = size_t(w_) * job.program->input.c + 2 * kWidth;
    const size_t numbers = (n + 5 * line_ + kWidth) * sizeof(float);
    words_ = static_cast<uint64_t*>(scratch.get(2 * sizeof(uint64_t) * job.words + numbers));
    row_ = reinterpret_cast<float*>(words_ + 2 * job.words);
    sums_ = row_ + n;
    // a place before and behind for the edges; whole vectors are read and written everywhere
    flat_ = sums_ + 3 * line_ + kWidth;
    columns_ = flat_ + line_;
  }

  // Takes row y in place of row y - 3.
  void load(int y) {
    if (y < 0 || y >= h_) return;
    row_difference<T>(job_, pattern_, y, row_, flat_);
    for (int x = 0; x < w_; x += kWidth) vstore(flat_ + x, vsub(vload(flat_ + x), limit_));
    if (!all_) {
      fill_row(words_, w_);
      keep_comparable(job_, y, words_, words_ + job_.words);
      // a number that does not count may be NaN
      for (int x = 0; x < w_; ++x)
        if (!(words_[x / 64] >> (x % 64) & 1)) flat_[x] = 0;
    }
    flat_[-1] = flat_[w_] = 0;
    float* const out = sums_ + y % 3 * line_;
    for (int x = 0; x < w_; x += kWidth)
      vstore(out + x, vadd(vadd(vload(flat_ + x - 1), vload(flat_ + x)), vload(flat_ + x + 1)));
  }

  // Adds row y, loaded last, to its cells. rest: the boxes' limit beyond the cells'
  void add_to_cells(int y, float rest) {
    const Cells& cells = job_.cells;
    Cell* const line = cells.line(y);
    const int grain = cells.grain;
    const bool first = y % grain == 0, last = (y + 1) % grain == 0 || y + 1 == h_;
    for (int x = 0; x < w_; x += kWidth)
      vstore(columns_ + x, first ? vload(flat_ + x) : vadd(vload(columns_ + x), vload(flat_ + x)));
    if (first) std::fill_n(line, cells.across, Cell{});
    if (!last && all_) return;
    for (int i = 0; i < cells.across; ++i) {
      const int x0 = i * grain, x1 = std::min(w_, x0 + grain);
      Cell& cell = line[i];
      cell.known += all_ ? (y % grain + 1) * (x1 - x0) : count_bits(words_, x0, x1);
      if (!last) continue;
      float sum = 0;
      for (int x = x0; x < x1; ++x) sum += columns_[x];
      cell.excess = sum + rest * cell.known;
    }
  }

  // Marks the pixels of row y whose box is beyond the threshold; rows y - 1 .. y + 1 are loaded.
  void find_hot(int y, uint64_t* hot) const {
    const bool above = y > 0, below = y + 1 < h_;
    const float* const at = sums_ + y % 3 * line_;
    const float* const up = above ? sums_ + (y - 1) % 3 * line_ : at;
    const float* const down = below ? sums_ + (y + 1) % 3 * line_ : at;
    for (int x = 0; x < w_; x += kWidth) {
      V box = vload(at + x);
      if (above) box = vadd(box, vload(up + x));
      if (below) box = vadd(box, vload(down + x));
      // written this way round, NaN is hot
      const uint64_t cold = vbits(vle(box, vzero()));
      hot[x / 64] |= (~cold & ((uint64_t(1) << kWidth) - 1)) << (x % 64);
    }
    hot[job_.words - 1] &= tail_mask(w_);
    if (!all_) keep_comparable(job_, y, hot, words_);
  }

 private:
  const InputJob& job_;
  const Pattern& pattern_;
  const int h_, w_;
  const V limit_;
  const bool all_;
  const size_t line_;
  uint64_t* words_;
  float *row_, *sums_, *flat_, *columns_;
};

// Marks the pixels of row y that differ at all; row: room for it.
template <class T>
void find_different(const InputJob& job, const Pattern& pattern, int y, float* row, uint64_t* hot) {
  const int channels = job.program->input.c;
  normalise_row<T>(job, pattern, y, row);
  const auto compare = [&](int x0, int x1, const T* stored) {
    const int begin = x0 * channels, n = (x1 - x0) * channels;
    const float* const now = row + begin;
    for (int i = 0; i < n; i += kWidth) {
      const int m = std::min(kWidth, n - i);
      if (!vany(vne(vload(now + i, m), vload(stored + i, m)))) continue;
      for (int k = i; k < i + m; ++k) {
        const int x = (begin + k) / channels;
        if (!(now[k] == to_float(stored[k]))) hot[x / 64] |= uint64_t(1) << (x % 64);
      }
    }
  };
  input_ring<const T>(job).stretches(y, 0, job.program->input.w, compare);
}

// Marks rows y0 .. y1: pixels whose 3x3 box moved by more than the threshold (threshold 0: pixels
// that differ at all). By cells: fills in those of these rows, which begin and end with a row of cells;
// the marks are left over.
template <class T>
void find_hot(const InputJob& job, int y0, int y1, Scratch& scratch) {
  if (y0 >= y1) return;
  const Input& in = job.program->input;
  const Pattern pattern(in, job.slot->frame_is_float);
  std::fill_n(job.hot + size_t(y0) * job.words, size_t(y1 - y0) * job.words, 0);
  const auto hot = [&](int y) { return job.hot + size_t(y) * job.words; };
  if (!(job.slot->input_threshold > 0)) {
    const size_t n = size_t(in.w) * in.c + kWidth;
    float* const row = static_cast<float*>(scratch.get(n * sizeof(float)));
    for (int y = y0; y < y1; ++y) find_different<T>(job, pattern, y, row, hot(y));
    return;
  }
  const float threshold = float(job.slot->input_threshold);
  const bool by_cell = job.by_cell();
  const float limit = by_cell ? kFineThresholds * threshold : threshold;
  Boxes<T> boxes(job, pattern, limit, scratch);
  const auto load = [&](int y) {
    boxes.load(y);
    if (!by_cell || y < y0 || y >= y1) return;
    boxes.add_to_cells(y, limit - threshold);
  };
  load(y0 - 1);
  load(y0);
  for (int y = y0; y < y1; ++y) {
    load(y + 1);
    boxes.find_hot(y, hot(y));
    if (!by_cell) continue;
    Cell* const line = job.cells.line(y);
    for_runs(hot(y), job.words, [&](int x0, int x1) {
      for (int i = x0 / job.cells.grain; i <= (x1 - 1) / job.cells.grain; ++i) line[i].fine = 1;
    });
  }
}

// Writes the marked pixels of rows y0 .. y1 to the input's state; 0 where the frame has no content.
template <class T>
void publish_input(const InputJob& job, int y0, int y1, Scratch& scratch) {
  const Input& in = job.program->input;
  const Pattern pattern(in, job.slot->frame_is_float);
  const size_t words = size_t(job.words), n = size_t(in.w) * in.c + kWidth;
  uint64_t* const content = static_cast<uint64_t*>(scratch.get(16 * words + n * sizeof(float)));
  float* const row = reinterpret_cast<float*>(content + 2 * words);
  const bool plain = is_plain(*job.program, *job.slot);
  const Ring<T> ring = input_ring<T>(job);
  const auto publish = [&](int y) {
    return [&, y](int x0, int x1, T* state) {
      const int begin = x0 * in.c;
      normalise<T>(*job.program, *job.slot, pattern, plain, y, begin, x1 * in.c, row, state - begin);
    };
  };
  const auto blank = [&](int x0, int x1, T* state) {
    std::fill_n(state, size_t(x1 - x0) * in.c, from_float<T>(0));
  };
  for (int y = y0; y < y1; ++y) {
    const uint64_t* const changed = job.changed + y * words;
    if (!any_bit(changed, job.words)) continue;
    if (!plain) read_row(*job.program, *job.slot, y, row);
    std::copy_n(changed, words, content);
    keep_valid(*job.slot, y, in.w, content, content + words);
    for_runs(content, job.words, [&](int x0, int x1) { ring.stretches(y, x0, x1, publish(y)); });
    for (size_t k = 0; k < words; ++k) content[k] ^= changed[k];
    for_runs(content, job.words, [&](int x0, int x1) { ring.stretches(y, x0, x1, blank); });
  }
}

}  // namespace TD_ISA
}  // namespace td
