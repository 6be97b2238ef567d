// 3x3 convolutions of stride 1 in tiles of 2x2 outputs: Winograd's F(2x2, 3x3), 16 multiply-adds per
// tile and pair of channels instead of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", CVPR 2016, section 4.1).
//
// A tile's 4x4 inputs become 16 numbers per channel, each of which is multiplied with its own matrix
// of weights; the 16 sums become the 2x2 outputs. Numbers beside a pixel's window cancel out but for
// rounding, so a pixel may differ in its last bits by what lies there: only sessions with a tolerance
// compute this way (`td_slot.exact`). Tiles begin at even rows and columns of the window.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "conv.h"
#include "finish.h"
#include "multiply.h"
#include "pack.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// a tile's side, its inputs' and how many these are
constexpr int kTile = 2, kPatch = 4, kPlaces = kPatch * kPatch;
// tiles of a task: whole register blocks, whose numbers and sums stay in the second cache
constexpr size_t kBlockTiles = 24;
// input channels of a chunk of weights
constexpr int kChunkNumbers = kChunkBytes / (kVectors * kWidth * 4);

// Weights of one place: behind each other by channel group, place, panel.
struct PackedTiles : Packed {
  explicit PackedTiles(const PackedConv<float>& conv) : conv(conv) { tile = kTile; }
  const PackedConv<float>& conv;
  const float* weights = nullptr;
  size_t weights_size = 0;
  std::vector<size_t> groups;  // where a group's weights begin
  const char* end() const { return reinterpret_cast<const char*>(weights + weights_size); }
};

// Makes the weights of places from a kernel's: G g G^T of each pair of channels.
inline void transform_weights(const float* (&g)[9], float* (&to)[kPlaces], int n) {
  for (int i = 0; i < n; ++i) {
    float rows[kPatch][3];
    for (int x = 0; x < 3; ++x) {
      const float a = g[x][i], b = g[3 + x][i], c = g[6 + x][i];
      rows[0][x] = a;
      rows[1][x] = 0.5f * (a + b + c);
      rows[2][x] = 0.5f * (a - b + c);
      rows[3][x] = c;
    }
    for (int y = 0; y < kPatch; ++y) {
      const float a = rows[y][0], b = rows[y][1], c = rows[y][2];
      to[y * kPatch][i] = a;
      to[y * kPatch + 1][i] = 0.5f * (a + b + c);
      to[y * kPatch + 2][i] = 0.5f * (a - b + c);
      to[y * kPatch + 3][i] = c;
    }
  }
}

inline std::unique_ptr<Packed> prepare_tiles(const PackedConv<float>& conv, Arena& arena) {
  auto packed = std::make_unique<PackedTiles>(conv);
  PackedTiles& p = *packed;
  p.by_group = true;
  p.most_px = kBlockTiles;
  for (const std::vector<Panel>& group : conv.panels) {
    p.groups.push_back(p.weights_size);
    for (const Panel& panel : group) p.weights_size += kPlaces * size_t(conv.c_in) * panel.nv * kWidth;
  }
  float* at = arena.get<float>(p.weights_size);
  p.weights = at;
  for (const std::vector<Panel>& group : conv.panels) {
    size_t width = 0;  // numbers of a group's input channel
    for (const Panel& panel : group) width += size_t(panel.nv) * kWidth;
    for (const Panel& panel : group) {
      const size_t panel_size = size_t(conv.c_in) * panel.nv * kWidth;
      const float* g[9];
      float* to[kPlaces];
      for (int tap = 0; tap < 9; ++tap) g[tap] = conv.weights + panel.weights[0] + tap * panel_size;
      for (int place = 0; place < kPlaces; ++place) to[place] = at + place * width * conv.c_in;
      transform_weights(g, to, int(panel_size));
      at += panel_size;
    }
    at += (kPlaces - 1) * width * conv.c_in;
  }
  p.bytes = p.weights_size * sizeof(float);
  return packed;
}

// One task: a block of tiles, one gate group.
class TilesTask {
 public:
  TilesTask(const Job& job, size_t begin, size_t end, Scratch& scratch)
      : job_(job), p_(static_cast<const PackedTiles&>(*job.packed)), conv_(p_.conv),
        in_(job.program->values[job.step->inputs[0]]),
        tiles_(job.pixels + begin), count_(int(end - begin)),
        pitch_(round_up(conv_.c_in, kWidth)) {
    const size_t numbers = size_t(kPlaces) * count_ * pitch_;
    numbers_ = static_cast<float*>(
        scratch.get(sizeof(float) * (numbers + size_t(kPlaces) * count_ * kRow)));
    sums_ = numbers_ + numbers;
    for (int i = 0; i < count_; ++i) rows_[i] = numbers_ + size_t(i) * pitch_;
    blocks_ = (count_ + conv_.pixels - 1) / conv_.pixels;
    for (int b = 0; b <= blocks_; ++b) begin_[b] = count_ * b / blocks_;
  }

  void run(int group) {
    Finisher<float> finish(job_);
    for (int i = 0; i < count_; ++i) find_patch(tiles_[i], patches_[i]);
    fetch_inputs(0);
    for (int i = 0; i < count_; ++i) {
      if (i + 1 < count_) fetch_inputs(i + 1);
      transform_inputs(patches_[i], numbers_ + size_t(i) * pitch_);
    }
    const std::vector<Panel>& panels = conv_.panels[group];
    const int c0 = panels.front().c0, channels = panels.back().c0 + panels.back().n - c0;
    const float* weights = p_.weights + p_.groups[group];
    for (int place = 0; place < kPlaces; ++place) {
      // what is stored is asked for while there is something else to do
      for (int i = count_ * place / kPlaces; i < count_ * (place + 1) / kPlaces; ++i)
        each_pixel(tiles_[i], [&](const Pixel& p, int) { finish.prefetch(p, c0, channels); });
      for (const Panel& panel : panels) weights = multiply_place(place, panel, c0, weights);
    }
    for (int i = 0; i < count_; ++i) complete(i, panels, c0, channels, finish);
  }

 private:
  using Patch = const float* [kPlaces];

  // Calls run(pixel, k) for the active pixels of a tile, k: its number in the tile.
  template <class Run>
  static TD_INLINE void each_pixel(const Pixel& tile, Run run) {
    for (uint32_t left = tile.run; left; left &= left - 1) {
      const int k = __builtin_ctz(left);
      run({uint16_t(tile.y + k / kTile), uint16_t(tile.x + k % kTile), tile.slot, 1}, k);
    }
  }

  // Finds a tile's inputs; zeros lie outside the map.
  void find_patch(const Pixel& tile, Patch& at) {
    if (int(tile.slot) != slot_) {
      slot_ = tile.slot;
      ring_ = job_.ring<const float>(job_.step->inputs[0], slot_);
    }
    const Tap& first = conv_.phases.front().taps.front();
    const int y0 = tile.y + first.dy, x0 = tile.x + first.dx;
    for (int y = 0; y < kPatch; ++y)
      for (int x = 0; x < kPatch; ++x) {
        const bool inside = unsigned(y0 + y) < unsigned(in_.h) && unsigned(x0 + x) < unsigned(in_.w);
        at[y * kPatch + x] = inside ? ring_.at(y0 + y, x0 + x) : conv_.zeros.data();
      }
  }

  // Asks for a tile's inputs but those that it shares with the tile before it.
  void fetch_inputs(int i) {
    const bool joins = i && tiles_[i].x == tiles_[i - 1].x + kTile && tiles_[i].y == tiles_[i - 1].y;
    for (int y = 0; y < kPatch; ++y)
      for (int x = joins ? kPatch - kTile : 0; x < kPatch; ++x)
        fetch(patches_[i][y * kPatch + x], conv_.c_in);
  }

  // B^T d B of all channels of a tile; place by place, tiles side by side.
  void transform_inputs(const Patch& at, float* to) const {
    const size_t next = size_t(count_) * pitch_;
    int c = 0;
    for (; c + kWidth <= conv_.c_in; c += kWidth)
      transform_input([&](int n) __attribute__((always_inline)) { return vload(at[n] + c); }, to + c, next);
    const int left = conv_.c_in - c;
    if (left) transform_input([&](int n) __attribute__((always_inline)) { return vload(at[n] + c, left); }, to + c, next);
  }

  template <class Load>
  static TD_INLINE void transform_input(Load load, float* to, size_t next) {
    V rows[kPatch][kPatch];
#pragma GCC unroll 4
    for (int x = 0; x < kPatch; ++x) {
      const V d[kPatch] = {load(x), load(kPatch + x), load(2 * kPatch + x), load(3 * kPatch + x)};
      rows[0][x] = vsub(d[0], d[2]);
      rows[1][x] = vadd(d[1], d[2]);
      rows[2][x] = vsub(d[2], d[1]);
      rows[3][x] = vsub(d[1], d[3]);
    }
#pragma GCC unroll 4
    for (int y = 0; y < kPatch; ++y, to += kPatch * next) {
      vstore(to, vsub(rows[y][0], rows[y][2]));
      vstore(to + next, vadd(rows[y][1], rows[y][2]));
      vstore(to + 2 * next, vsub(rows[y][2], rows[y][1]));
      vstore(to + 3 * next, vsub(rows[y][1], rows[y][3]));
    }
  }

  // Multiplies one place's numbers with its weights; returns where the next weights begin.
  const float* multiply_place(int place, const Panel& panel, int c0, const float* weights) {
    const int width = panel.nv * kWidth;
    for (int k = 0; k < conv_.c_in; k += kChunkNumbers) {
      const int end = std::min(conv_.c_in, k + kChunkNumbers);
      for (int b = 0; b < blocks_; ++b) {
        const int m = begin_[b + 1] - begin_[b];
        // the blocks share the lines of the next chunk
        const int each = (panel.nv + blocks_ - 1) / blocks_;
        const int lines = std::clamp(panel.nv - b * each, 0, each);
        const char* const next = reinterpret_cast<const char*>(weights + (end - k) * width);
        const Ahead ahead{std::min(next + size_t(b) * each * (end - k) * 64,
                                   p_.end() - size_t(end - k) * lines * 64), lines};
        const Rows<float> rows{rows_ + begin_[b], 0, 1, int(place * count_ * pitch_), ahead};
        float* const sums = sums_ + (size_t(place) * count_ + begin_[b]) * kRow + panel.c0 - c0;
        register_block<float>(panel.nv, m).multiply(rows, k, end, weights, sums,
                                                    k ? nullptr : kZeros);
      }
      weights += (end - k) * width;
    }
    return weights;
  }

  // A^T m A of a tile's sums, and its pixels' completion.
  void complete(int i, const std::vector<Panel>& panels, int c0, int channels,
                Finisher<float>& finish) {
    alignas(64) float rows[kTile * kTile][kRow];
    for (const Panel& panel : panels)
      for (int v = 0; v < panel.nv; ++v) {
        const int c = panel.c0 - c0 + v * kWidth;
        transform_sums(sums_ + size_t(i) * kRow + c, size_t(count_) * kRow,
                       vload(conv_.bias.data() + panel.bias + v * kWidth), rows[0] + c);
      }
    each_pixel(tiles_[i], [&](const Pixel& p, int k) { finish(p, c0, channels, rows[k]); });
  }

  static TD_INLINE void transform_sums(const float* from, size_t next, V bias, float* to) {
    V rows[kPatch][kTile];
#pragma GCC unroll 4
    for (int y = 0; y < kPatch; ++y, from += kPatch * next) {
      const V m[kPatch] = {vload(from), vload(from + next), vload(from + 2 * next),
                           vload(from + 3 * next)};
      rows[y][0] = vadd(vadd(m[0], m[1]), m[2]);
      rows[y][1] = vsub(vsub(m[1], m[2]), m[3]);
    }
#pragma GCC unroll 2
    for (int x = 0; x < kTile; ++x) {
      vstore(to + x * kRow, vadd(bias, vadd(vadd(rows[0][x], rows[1][x]), rows[2][x])));
      vstore(to + (kTile + x) * kRow,
             vadd(bias, vsub(vsub(rows[1][x], rows[2][x]), rows[3][x])));
    }
  }

  alignas(64) static constexpr float kZeros[kVectors * kWidth] = {};
  const Job& job_;
  const PackedTiles& p_;
  const PackedConv<float>& conv_;
  const Value& in_;
  const Pixel* tiles_;
  const int count_;
  const int pitch_;  // numbers of a tile at one place
  float* numbers_;   // [places, tiles, pitch]
  float* sums_;      // [places, tiles, kRow]
  const float* rows_[kBlockTiles];  // the tiles' numbers of the first place
  Patch patches_[kBlockTiles];      // and where they come from
  int blocks_ = 0, begin_[kBlockTiles + 1];  // of the register blocks
  int slot_ = -1;
  Ring<const float> ring_;
};

}  // namespace TD_ISA
}  // namespace td
