// Weights of convolutions in the order in which register blocks read them (multiply.h).
//
// A transposed convolution is one convolution per phase (y % stride, x % stride) of the output.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "multiply.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// multiply-adds per output up to which a task takes all channels of its pixels
constexpr size_t kShortSum = 256;
// bytes of a step's weights up to which a register block is multiplied with all of them at once
constexpr size_t kNearBytes = 32 * 1024;
// bytes of weights that are used again and again before the next ones come
constexpr int kChunkBytes = 64 * 1024;

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
  std::vector<T> zeros;  // what lies outside the map: one pixel
  bool weights_near;     // they stay in the first cache
  int pixels;  // of a register block
  const char* end() const { return reinterpret_cast<const char*>(weights + weights_size); }
};

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
  p.zeros.assign(size_t(raw.c_in) * raw.groups + 2, from_float<T>(0));
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
  p.weights_near = size * sizeof(typename Multiply<T>::Weight) <= kNearBytes;
  for (auto& group : p.panels)
    for (Panel& panel : group)
      for (size_t i = 0; i < p.phases.size(); ++i)
        pack_panel<T>(raw, panel, kernel_taps[i], p.weights + panel.weights[i]);
  p.bytes = size * sizeof(typename Multiply<T>::Weight) + p.bias.size() * 4;
  return packed;
}

}  // namespace TD_ISA
}  // namespace td
