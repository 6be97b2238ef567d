// Convolution and transposed convolution at the active pixels, without im2col.
//
// A register block of M pixels by NV vectors of output channels stays in registers while a loop over
// taps and input channels broadcasts each input number straight from its pixel's row in the state
// and multiplies it with packed weights. Blocks of pixels share each chunk of weights while it is in
// the first cache; partial sums wait in `sums`. Every output is one chain of multiply-adds over (tap,
// channel) in ascending order, so it does not depend on how pixels were put together.
//
// A transposed convolution is one convolution per phase (y % stride, x % stride) of the output.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "finish.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// vectors of output channels in a register block, and pixels by that number
#if defined(TD_AVX2)
constexpr int kVectors = 2;
constexpr int kPixels[kVectors + 1] = {0, 12, 6};
#else
constexpr int kVectors = 4;
constexpr int kPixels[kVectors + 1] = {0, 12, 12, 8, 6};
#endif
constexpr int kMostPixels = 12;
// multiply-adds per output up to which a task takes all channels of its pixels
constexpr size_t kShortSum = 256;
// bytes of weights that are used again and again before the next ones come
constexpr int kChunkBytes = 64 * 1024;

// How T is multiplied: input numbers per multiply-add, and what a packed weight is.
template <class T>
struct Multiply;
template <>
struct Multiply<float> {
  static constexpr int kStep = 1;
  using Weight = float;
};
template <>
struct Multiply<bf16> {
  static constexpr int kStep = 2;
  using Weight = uint32_t;  // two bf16 numbers of neighbouring input channels
};

struct Tap {
  int dy, dx;
};

// Taps that follow each other in one row of memory: one run of numbers.
struct Segment {
  int tap, n_taps;
};

// What is multiplied before the block's next pixels come: numbers k0 .. k1 of some segments, of equal
// length and in equal distances.
struct Chunk {
  int segment, n_segments, k0, k1;
  size_t weights;  // in steps of the panel, from its first
};

struct Phase {
  int ry, rx;
  std::vector<Tap> taps;
  std::vector<Segment> segments;
  std::vector<Chunk> chunks;
  size_t steps;  // of a panel: multiply-adds per output
};

// Output channels that one register block computes.
struct Panel {
  int c0, n, nv;  // first channel, channels, vectors
  int input_c0;   // first input channel of their convolution group
  size_t bias;
  std::vector<size_t> weights;  // per phase, where they begin
};

template <class T>
struct PackedConv : Packed {
  using Weight = typename Multiply<T>::Weight;
  int stride_y, stride_x;  // input pixels per output (of one phase)
  int phases_y, phases_x;
  int c_in;    // of one convolution group
  bool whole_rows;  // segments may hold several taps
  std::vector<Phase> phases;
  std::vector<std::vector<Panel>> panels;  // per gate group
  Weight* weights;
  size_t weights_size;
  std::vector<float> bias;
  std::vector<T> zeros;
  int pixels;  // of a register block
  const char* end() const { return reinterpret_cast<const char*>(weights + weights_size); }
};

// Weights that are wanted next, and how many cache lines of them are asked for in every step.
struct Ahead {
  const char* at;
  int lines;
};

// Where a register block finds its numbers: one pointer per pixel for each of some runs.
template <class T>
struct Rows {
  const T* const* first;  // of the first run
  int next;               // pointers from a run's to the next one's
  int runs;
  int offset;             // of the convolution group's first channel
  Ahead ahead;
};

// Adds numbers k0 .. k1 of each run to the sums acc [M][kRow]; bias: what the sums start from, null:
// from acc.
template <int M, int NV>
void multiply(const Rows<float>& rows, int k0, int k1, const float* weights, float* acc,
              const float* bias) {
  V sum[M][NV];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v)
      sum[m][v] = vload(bias ? bias + v * kWidth : acc + m * kRow + v * kWidth);
  const float* const* q = rows.first;
  const char* ahead = rows.ahead.at;
  for (int run = 0; run < rows.runs; ++run, q += rows.next) {
    const float* in[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) in[m] = q[m] + rows.offset;
#pragma GCC unroll 2
    for (int k = k0; k < k1; ++k) {
      V w[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) w[v] = vload(weights + v * kWidth);
      for (int line = 0; line < rows.ahead.lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const V x = vset(in[m][k]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sum[m][v] = vfma(x, w[v], sum[m][v]);
      }
      weights += NV * kWidth;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) vstore(acc + m * kRow + v * kWidth, sum[m][v]);
}

#if defined(TD_AVX512_BF16)
// as above in pairs of numbers; an odd last one is paired with 0
template <int M, int NV>
void multiply(const Rows<bf16>& rows, int k0, int k1, const uint32_t* weights, float* acc,
              const float* bias) {
  __m512 sum[M][NV];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v)
      sum[m][v] = vload(bias ? bias + v * kWidth : acc + m * kRow + v * kWidth).v;
  const bf16* const* q = rows.first;
  const char* ahead = rows.ahead.at;
  for (int run = 0; run < rows.runs; ++run, q += rows.next) {
    const bf16* in[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) in[m] = q[m] + rows.offset;
    int k = k0;
    for (; k + 1 < k1; k += 2) {
      __m512bh w[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) w[v] = (__m512bh)_mm512_loadu_si512(weights + v * kWidth);
      for (int line = 0; line < rows.ahead.lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        int32_t two;
        std::memcpy(&two, in[m] + k, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], x, w[v]);
      }
      weights += NV * kWidth;
    }
    if (k == k1) continue;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(in[m][k].bits);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v)
        sum[m][v] = _mm512_dpbf16_ps(sum[m][v], x,
                                     (__m512bh)_mm512_loadu_si512(weights + v * kWidth));
    }
    weights += NV * kWidth;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) vstore(acc + m * kRow + v * kWidth, V{sum[m][v]});
}
#endif

template <class T>
using Multiplier = void (*)(const Rows<T>&, int, int, const typename Multiply<T>::Weight*, float*,
                            const float*);

template <class T, int NV, int M>
constexpr Multiplier<T> multiplier_of() {
  if constexpr (M <= kPixels[NV])
    return &multiply<M, NV>;
  else
    return nullptr;
}

template <class T, int NV>
Multiplier<T> multiplier_for(int m) {
  static constexpr Multiplier<T> table[kMostPixels + 1] = {
      nullptr,
      multiplier_of<T, NV, 1>(), multiplier_of<T, NV, 2>(), multiplier_of<T, NV, 3>(),
      multiplier_of<T, NV, 4>(), multiplier_of<T, NV, 5>(), multiplier_of<T, NV, 6>(),
      multiplier_of<T, NV, 7>(), multiplier_of<T, NV, 8>(), multiplier_of<T, NV, 9>(),
      multiplier_of<T, NV, 10>(), multiplier_of<T, NV, 11>(), multiplier_of<T, NV, 12>(),
  };
  return table[m];
}

template <class T>
Multiplier<T> multiplier(int nv, int m) {
  if (nv == 1) return multiplier_for<T, 1>(m);
  if (nv == 2) return multiplier_for<T, 2>(m);
#if !defined(TD_AVX2)
  if (nv == 3) return multiplier_for<T, 3>(m);
  if (nv == 4) return multiplier_for<T, 4>(m);
#endif
  return nullptr;
}

// What the convolution reads of the model's weights: [o][i][tap].
struct RawConv {
  bool transposed;
  int kh, kw, sy, sx, dy, dx, pad_y, pad_x, groups, c_in, c_out;
  const float* weight;
  const float* bias;  // may be null

  explicit RawConv(const Program& program, const Step& step) {
    const std::vector<int64_t>& p = step.params.ints;
    transposed = step.code == Code::conv_transpose2d;
    kh = int(p[0]), kw = int(p[1]), sy = int(p[2]), sx = int(p[3]), dy = int(p[4]), dx = int(p[5]);
    pad_y = int(p[6]), pad_x = int(p[7]), groups = int(p[8]);
    c_in = program.values[step.inputs[0]].c / groups;
    c_out = program.values[step.output].c / groups;
    weight = step.params.arrays[0].data();
    bias = step.params.arrays[1].empty() ? nullptr : step.params.arrays[1].data();
  }
  // o: output channel of the whole map; i: input channel within the group
  float at(int o, int i, int ky, int kx) const {
    const size_t tap = size_t(ky) * kw + kx;
    if (!transposed) return weight[(size_t(o) * c_in + i) * kh * kw + tap];
    const int group = o / c_out, within = o % c_out;
    return weight[((size_t(group) * c_in + i) * c_out + within) * kh * kw + tap];
  }
};

struct KernelTap {
  int ky, kx;
};

// The taps of one phase, in ascending order of the input's place.
inline std::vector<KernelTap> phase_taps(const RawConv& raw, int ry, int rx, std::vector<Tap>& taps) {
  std::vector<KernelTap> which;
  for (int ky = 0; ky < raw.kh; ++ky) {
    for (int kx = 0; kx < raw.kw; ++kx) {
      if (!raw.transposed) {
        which.push_back({ky, kx});
        taps.push_back({ky * raw.dy - raw.pad_y, kx * raw.dx - raw.pad_x});
        continue;
      }
      // in = (out + pad - k * dilation) / stride, where that is whole; from the far end, so that
      // the input's places ascend
      const int y = ry + raw.pad_y - (raw.kh - 1 - ky) * raw.dy;
      const int x = rx + raw.pad_x - (raw.kw - 1 - kx) * raw.dx;
      if (y % raw.sy || x % raw.sx) continue;
      which.push_back({raw.kh - 1 - ky, raw.kw - 1 - kx});
      taps.push_back({y / raw.sy, x / raw.sx});
    }
  }
  return which;
}

template <class T>
std::vector<Segment> make_segments(const std::vector<Tap>& taps, bool whole_rows) {
  std::vector<Segment> out;
  for (int t = 0; t < int(taps.size()); ++t) {
    const bool joins = whole_rows && t && taps[t].dy == taps[t - 1].dy &&
                       taps[t].dx == taps[t - 1].dx + 1;
    if (joins)
      ++out.back().n_taps;
    else
      out.push_back({t, 1});
  }
  return out;
}

template <class T>
std::vector<Chunk> make_chunks(const std::vector<Segment>& segments, int c_in, int vectors) {
  constexpr int step = Multiply<T>::kStep;
  const int most = std::max(1, kChunkBytes / (vectors * kWidth * 4)) * step;
  std::vector<Chunk> out;
  size_t weights = 0;
  for (int s = 0; s < int(segments.size()); ++s) {
    const int length = segments[s].n_taps * c_in;
    const int pieces = (length + most - 1) / most;
    const int piece = round_up((length + pieces - 1) / pieces, step);
    const bool joins = s && pieces == 1 && segments[s].n_taps == segments[s - 1].n_taps &&
                       out.back().k0 == 0 && length * (out.back().n_segments + 1) <= most;
    if (joins) {
      ++out.back().n_segments;
      weights += size_t(length + step - 1) / step;
      continue;
    }
    for (int k = 0; k < length; k += piece) {
      const int end = std::min(length, k + piece);
      out.push_back({s, 1, k, end, weights});
      weights += size_t(end - k + step - 1) / step;
    }
  }
  return out;
}

template <class T>
void pack_panel(const RawConv& raw, const Panel& panel, const std::vector<KernelTap>& taps,
                typename Multiply<T>::Weight* out);

template <>
inline void pack_panel<float>(const RawConv& raw, const Panel& panel,
                              const std::vector<KernelTap>& taps, float* out) {
  for (const KernelTap& tap : taps)
    for (int i = 0; i < raw.c_in; ++i, out += panel.nv * kWidth)
      for (int n = 0; n < panel.n; ++n) out[n] = raw.at(panel.c0 + n, i, tap.ky, tap.kx);
}

#if defined(TD_AVX512_BF16)
template <>
inline void pack_panel<bf16>(const RawConv& raw, const Panel& panel,
                             const std::vector<KernelTap>& taps, uint32_t* out) {
  for (const KernelTap& tap : taps) {
    for (int i = 0; i < raw.c_in; i += 2, out += panel.nv * kWidth) {
      for (int n = 0; n < panel.n; ++n) {
        const uint32_t low = to_bf16(raw.at(panel.c0 + n, i, tap.ky, tap.kx)).bits;
        const uint32_t high =
            i + 1 < raw.c_in ? to_bf16(raw.at(panel.c0 + n, i + 1, tap.ky, tap.kx)).bits : 0;
        out[n] = low | high << 16;
      }
    }
  }
}
#endif

// Cuts each gate group into panels that stay within one convolution group.
inline std::vector<std::vector<Panel>> make_panels(const RawConv& raw, size_t& bias_size) {
  std::vector<std::vector<Panel>> out;
  const int total = raw.c_out * raw.groups;
  bias_size = 0;
  for (int g0 = 0; g0 < total; g0 += kGroup) {
    out.emplace_back();
    const int g1 = std::min(total, g0 + kGroup);
    for (int c = g0; c < g1;) {
      const int group = c / raw.c_out;
      const int end = std::min({g1, (group + 1) * raw.c_out, c + kVectors * kWidth});
      const int nv = (end - c + kWidth - 1) / kWidth;
      out.back().push_back({c, end - c, nv, group * raw.c_in, bias_size, {}});
      bias_size += size_t(nv) * kWidth;
      c = end;
    }
  }
  return out;
}

template <class T>
std::unique_ptr<Packed> prepare_conv(const Program& program, const Step& step, Arena& arena) {
  constexpr int unit = Multiply<T>::kStep;
  const RawConv raw(program, step);
  auto packed = std::make_unique<PackedConv<T>>();
  PackedConv<T>& p = *packed;
  p.stride_y = raw.transposed ? 1 : raw.sy;
  p.stride_x = raw.transposed ? 1 : raw.sx;
  p.phases_y = raw.transposed ? raw.sy : 1;
  p.phases_x = raw.transposed ? raw.sx : 1;
  p.c_in = raw.c_in;
  p.zeros.assign(size_t(raw.c_in) + 2, from_float<T>(0));
  const Value& in = program.values[step.inputs[0]];
  const bool contiguous = raw.groups == 1 && program.buffers[in.buffer].c == raw.c_in;
  p.whole_rows = contiguous && raw.c_in % unit == 0;
  size_t bias_size = 0;
  p.panels = make_panels(raw, bias_size);
  p.bias.assign(bias_size, 0.0f);
  int vectors = 1;
  for (const auto& group : p.panels)
    for (const Panel& panel : group) {
      vectors = std::max(vectors, panel.nv);
      for (int n = 0; raw.bias && n < panel.n; ++n) p.bias[panel.bias + n] = raw.bias[panel.c0 + n];
    }
  p.pixels = kPixels[vectors];
  std::vector<std::vector<KernelTap>> kernel_taps;
  for (int ry = 0; ry < p.phases_y; ++ry) {
    for (int rx = 0; rx < p.phases_x; ++rx) {
      Phase phase{};
      phase.ry = ry, phase.rx = rx;
      kernel_taps.push_back(phase_taps(raw, ry, rx, phase.taps));
      phase.segments = make_segments<T>(phase.taps, p.whole_rows);
      phase.chunks = make_chunks<T>(phase.segments, raw.c_in, vectors);
      phase.steps = phase.taps.size() * size_t((raw.c_in + unit - 1) / unit);
      p.phases.push_back(std::move(phase));
    }
  }
  // short sums: a pixel's place in memory is worth more than the weights'
  p.by_group = p.phases.front().steps > kShortSum;
  size_t size = 0;
  for (auto& group : p.panels)
    for (Panel& panel : group)
      for (const Phase& phase : p.phases) {
        panel.weights.push_back(size);
        size += phase.steps * panel.nv * kWidth;
      }
  p.weights = arena.get<typename Multiply<T>::Weight>(size);
  p.weights_size = size;
  for (auto& group : p.panels)
    for (Panel& panel : group)
      for (size_t i = 0; i < p.phases.size(); ++i)
        pack_panel<T>(raw, panel, kernel_taps[i], p.weights + panel.weights[i]);
  p.bytes = size * sizeof(typename Multiply<T>::Weight) + p.bias.size() * 4;
  return packed;
}

// One task: a block of pixels, one gate group.
template <class T>
class ConvTask {
 public:
  ConvTask(const Job& job, size_t begin, size_t end, Scratch& scratch)
      : job_(job), p_(static_cast<const PackedConv<T>&>(*job.packed)),
        in_(job.program->values[job.step->inputs[0]]), pitch_(job.pitch(job.step->inputs[0])),
        pixels_(job.pixels + begin), count_(int(end - begin)) {
    for (const Phase& phase : p_.phases) most_taps_ = std::max(most_taps_, int(phase.taps.size()));
    const size_t sums = sizeof(float) * count_ * kRow;
    const size_t rows = sizeof(T*) * size_t(most_taps_ + 1) * (count_ + kMostPixels);
    unsigned char* bytes = static_cast<unsigned char*>(
        scratch.get(sums + rows + 128));
    sums_ = reinterpret_cast<float*>(bytes);
    rows_ = reinterpret_cast<const T**>(bytes + (sums + 63) / 64 * 64);
  }

  // Channel groups first .. last.
  void run(int first, int last) {
    Finisher<T> finish(job_);
    for (size_t i = 0; i < p_.phases.size(); ++i) {
      choose(p_.phases[i]);
      if (!chosen_) continue;
      for (int b = 0; b < blocks_; ++b) find_rows(p_.phases[i], b);
      for (int group = first; group <= last; ++group) {
        run_group(int(i), group, finish);
        const std::vector<Panel>& panels = p_.panels[group];
        const int c0 = panels.front().c0, n = panels.back().c0 + panels.back().n - c0;
        for (int k = 0; k < chosen_; ++k)
          finish(pixels_[order_[k]], c0, n, sums_ + size_t(k) * kRow);
      }
    }
  }

 private:
  // Picks the task's pixels of one phase and cuts them into register blocks of nearly equal size.
  void choose(const Phase& phase) {
    chosen_ = 0;
    if (p_.phases.size() == 1) {
      for (; chosen_ < count_; ++chosen_) order_[chosen_] = uint16_t(chosen_);
    } else {
      for (int i = 0; i < count_; ++i)
        if (pixels_[i].y % p_.phases_y == phase.ry && pixels_[i].x % p_.phases_x == phase.rx)
          order_[chosen_++] = uint16_t(i);
    }
    blocks_ = (chosen_ + p_.pixels - 1) / p_.pixels;
    for (int b = 0; b <= blocks_; ++b) begin_[b] = uint16_t(chosen_ * b / std::max(1, blocks_));
  }

  // Sums one group's channels of the chosen pixels.
  void run_group(int index, int group, Finisher<T>& finish) {
    const Phase& phase = p_.phases[index];
    const std::vector<Panel>& panels = p_.panels[group];
    const int c0 = panels.front().c0, channels = panels.back().c0 + panels.back().n - c0;
    for (const Panel& panel : panels) {
      const float* bias = p_.bias.data() + panel.bias;
      const typename Multiply<T>::Weight* weights = p_.weights + panel.weights[index];
      float* const sums = sums_ + panel.c0 - c0;
      if (phase.chunks.empty()) {
        // nothing reaches these outputs but the bias
        for (int i = 0; i < chosen_; ++i)
          std::memcpy(sums + size_t(i) * kRow, bias, sizeof(float) * panel.n);
        continue;
      }
      for (size_t c = 0; c < phase.chunks.size(); ++c) {
        const Chunk& chunk = phase.chunks[c];
        for (int b = 0; b < blocks_; ++b) {
          if (c == 0 && panel.c0 == c0) {
            for (int i = begin_[b]; i < begin_[b + 1]; ++i)
              finish.prefetch(pixels_[order_[i]], c0, channels);
          }
          run_chunk(phase, panel, chunk, b, weights + chunk.weights * panel.nv * kWidth,
                    next_weights(chunk, panel, index, b), sums + size_t(begin_[b]) * kRow,
                    c == 0 ? bias : nullptr);
        }
      }
    }
  }

  // The part of the next chunk that a block asks for; the blocks share it. Behind a panel's weights
  // lie the next one's.
  Ahead next_weights(const Chunk& chunk, const Panel& panel, int index, int block) const {
    const size_t steps = chunk_steps(chunk);
    const char* next = reinterpret_cast<const char*>(
        p_.weights + panel.weights[index] + (chunk.weights + steps) * panel.nv * kWidth);
    const int each = (panel.nv + blocks_ - 1) / blocks_;
    const int lines = std::clamp(panel.nv - block * each, 0, each);
    return {std::min(next + size_t(block) * each * steps * 64, p_.end() - steps * lines * 64), lines};
  }

  size_t chunk_steps(const Chunk& chunk) const {
    constexpr int unit = Multiply<T>::kStep;
    return size_t(chunk.k1 - chunk.k0 + unit - 1) / unit * chunk.n_segments;
  }

  // Input pixel that a pixel's taps are counted from.
  TD_INLINE Tap origin(const Pixel& p) const {
    if (p_.phases.size() == 1) return {p.y * p_.stride_y, p.x * p_.stride_x};
    return {p.y / p_.phases_y * p_.stride_y, p.x / p_.phases_x * p_.stride_x};
  }

  const T** rows_of(int block) { return rows_ + size_t(block) * (most_taps_ * p_.pixels + 1); }

  // Finds where each pixel's taps lie. Inside the map only a segment's first is wanted.
  void find_rows(const Phase& phase, int block) {
    const T** rows = rows_of(block);
    const uint16_t* const order = order_ + begin_[block];
    const int m = begin_[block + 1] - begin_[block];
    const Tap& first = phase.taps.empty() ? kNone : phase.taps.front();
    const Tap& last = phase.taps.empty() ? kNone : phase.taps.back();
    bool inside = true;
    for (int i = 0; i < m; ++i) {
      const auto [y, x] = origin(pixels_[order[i]]);
      inside &= y + first.dy >= 0 && y + last.dy < in_.h && x + first.dx >= 0 && x + last.dx < in_.w;
    }
    block_inside(block) = inside;
    for (int i = 0; i < m; ++i) {
      const Pixel& p = pixels_[order[i]];
      if (int(p.slot) != slot_) {
        slot_ = p.slot;
        base_ = job_.base<T>(job_.step->inputs[0], p.slot);
      }
      const auto [y, x] = origin(p);
      if (inside) {
        for (const Segment& s : phase.segments) {
          const Tap& tap = phase.taps[s.tap];
          rows[s.tap * p_.pixels + i] =
              base_ + (ptrdiff_t(y + tap.dy) * in_.w + (x + tap.dx)) * pitch_;
        }
        continue;
      }
      for (size_t t = 0; t < phase.taps.size(); ++t) {
        const int iy = y + phase.taps[t].dy, ix = x + phase.taps[t].dx;
        const bool exists = iy >= 0 && iy < in_.h && ix >= 0 && ix < in_.w;
        rows[t * p_.pixels + i] =
            exists ? base_ + (ptrdiff_t(iy) * in_.w + ix) * pitch_ : nullptr;
      }
    }
  }

  // a flag behind the block's rows
  bool& block_inside(int block) {
    return *reinterpret_cast<bool*>(rows_of(block) + most_taps_ * p_.pixels);
  }

  void run_chunk(const Phase& phase, const Panel& panel, const Chunk& chunk, int block,
                 const typename Multiply<T>::Weight* weights, Ahead ahead, float* sums,
                 const float* bias) {
    const int m = begin_[block + 1] - begin_[block];
    const T* const* rows = rows_of(block);
    const Segment& segment = phase.segments[chunk.segment];
    const Multiplier<T> call = multiplier<T>(panel.nv, m);
    if (block_inside(block)) {
      // segments of a chunk have as many taps each
      const Rows<T> all{rows + segment.tap * p_.pixels, segment.n_taps * p_.pixels,
                        chunk.n_segments, panel.input_c0, ahead};
      call(all, chunk.k0, chunk.k1, weights, sums, bias);
      return;
    }
    // beside the edge: tap by tap, zeros outside
    constexpr int unit = Multiply<T>::kStep;
    const T* q[kMostPixels];
    for (int s = 0; s < chunk.n_segments; ++s) {
      for (int k = chunk.k0; k < chunk.k1;) {
        const int tap = k / p_.c_in, begin = k - tap * p_.c_in;
        const int end = std::min(p_.c_in, begin + chunk.k1 - k);
        for (int i = 0; i < m; ++i) {
          const T* row = rows[(segment.tap + s * segment.n_taps + tap) * p_.pixels + i];
          q[i] = row ? row + panel.input_c0 : p_.zeros.data();
        }
        call({q, 0, 1, 0, ahead}, begin, end, weights, sums, bias);
        bias = nullptr;
        const size_t steps = size_t(end - begin + unit - 1) / unit;
        weights += steps * panel.nv * kWidth;
        ahead.at += steps * ahead.lines * 64;
        k += end - begin;
      }
    }
  }

  static constexpr Tap kNone{0, 0};
  const Job& job_;
  const PackedConv<T>& p_;
  const Value& in_;
  const int pitch_;
  const Pixel* pixels_;
  const int count_;
  int most_taps_ = 0, slot_ = -1;
  int chosen_ = 0, blocks_ = 0;
  const T* base_ = nullptr;
  float* sums_;
  const T** rows_;
  uint16_t order_[kBlockPx];        // the chosen pixels
  uint16_t begin_[kBlockPx + 2];    // of the register blocks among them
};

template <class T>
void run_conv(const Job& job, size_t begin, size_t end, int group, Scratch& scratch) {
  const int last = int(static_cast<const PackedConv<T>&>(*job.packed).panels.size()) - 1;
  ConvTask<T>(job, begin, end, scratch).run(group < 0 ? 0 : group, group < 0 ? last : group);
}

}  // namespace TD_ISA
}  // namespace td
