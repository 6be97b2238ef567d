// Frames sampled at the pixels of a window, bilinear, in whole numbers: the same bits on every
// instruction set.
//
// A row is taken in blocks of kBlock pixels. Of a block's first pixel the place in the frame is worked
// out in double precision, the others lie at a way from it that single precision is plenty for. Where
// the block shows neighbouring pixels of one row of the frame, as most do with a camera that hardly
// turns, it is blended where it lies; otherwise its pixels are lined up first.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../kernels.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// `S` holds kShorts whole numbers of 16 bits.
#if defined(TD_NEON)
constexpr int kShorts = 8;
struct S {
  int16x8_t v;
};
// bytes times 128
TD_INLINE S load_bytes(const uint8_t* p) { return {vreinterpretq_s16_u16(vshll_n_u8(vld1_u8(p), 7))}; }
TD_INLINE S sadd(S a, S b) { return {vaddq_s16(a.v, b.v)}; }
TD_INLINE S ssub(S a, S b) { return {vsubq_s16(a.v, b.v)}; }
// a * b / 2^15, rounded
TD_INLINE S smul(S a, S b) { return {vqrdmulhq_s16(a.v, b.v)}; }
// divided by 128 and rounded
TD_INLINE void store_bytes(uint8_t* p, S a) { vst1_u8(p, vqrshrun_n_s16(a.v, 7)); }
TD_INLINE S spread(const int16_t* p, const uint8_t* bytes) {
  const uint8x16_t from = vreinterpretq_u8_s16(vld1q_s16(p));
  return {vreinterpretq_s16_u8(vqtbl1q_u8(from, vld1q_u8(bytes)))};
}
TD_INLINE void store_whole(int32_t* p, V a) { vst1q_s32(p, vcvtnq_s32_f32(a.v)); }
TD_INLINE void store_whole(int16_t* p, V a) { vst1_s16(p, vmovn_s32(vcvtnq_s32_f32(a.v))); }
// The pixels at a and b to `lefts`, their right neighbours to `rights`: eight bytes are read and
// written of six.
TD_INLINE void line_up_two(const uint8_t* a, const uint8_t* b, uint8_t* lefts, uint8_t* rights) {
  const uint8x16_t order = {0, 1, 2, 8, 9, 10, 6, 7, 3, 4, 5, 11, 12, 13, 14, 15};
  const uint8x16_t both = vqtbl1q_u8(vcombine_u8(vld1_u8(a), vld1_u8(b)), order);
  vst1_u8(lefts, vget_low_u8(both));
  vst1_u8(rights, vget_high_u8(both));
}
#else
constexpr int kShorts = 16;
struct S {
  __m256i v;
};
TD_INLINE S load_bytes(const uint8_t* p) {
  return {_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)), 7)};
}
TD_INLINE S sadd(S a, S b) { return {_mm256_add_epi16(a.v, b.v)}; }
TD_INLINE S ssub(S a, S b) { return {_mm256_sub_epi16(a.v, b.v)}; }
TD_INLINE S smul(S a, S b) { return {_mm256_mulhrs_epi16(a.v, b.v)}; }
TD_INLINE void store_bytes(uint8_t* p, S a) {
  const __m256i r = _mm256_srli_epi16(_mm256_add_epi16(a.v, _mm256_set1_epi16(64)), 7);
  const __m128i low = _mm256_castsi256_si128(r), high = _mm256_extracti128_si256(r, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(low, high));
}
TD_INLINE S spread(const int16_t* p, const uint8_t* bytes) {
  const __m256i from = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  return {_mm256_shuffle_epi8(from, _mm256_loadu_si256((const __m256i*)bytes))};
}
// The pixels at a and b to `lefts`, their right neighbours to `rights`: eight bytes are read and
// written of six.
TD_INLINE void line_up_two(const uint8_t* a, const uint8_t* b, uint8_t* lefts, uint8_t* rights) {
  const __m128i order = _mm_setr_epi8(0, 1, 2, 8, 9, 10, 6, 7, 3, 4, 5, 11, 12, 13, 14, 15);
  const __m128i low = _mm_loadl_epi64((const __m128i*)a), high = _mm_loadl_epi64((const __m128i*)b);
  const __m128i both = _mm_shuffle_epi8(_mm_unpacklo_epi64(low, high), order);
  _mm_storel_epi64((__m128i*)lefts, both);
  _mm_storel_epi64((__m128i*)rights, _mm_unpackhi_epi64(both, both));
}
#if defined(TD_AVX2)
TD_INLINE void store_whole(int32_t* p, V a) {
  _mm256_storeu_si256((__m256i*)p, _mm256_cvtps_epi32(a.v));
}
TD_INLINE void store_whole(int16_t* p, V a) {
  const __m256i whole = _mm256_cvtps_epi32(a.v);
  const __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(low, high));
}
#else
TD_INLINE void store_whole(int32_t* p, V a) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(a.v)); }
TD_INLINE void store_whole(int16_t* p, V a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
#endif
#endif

class Warp {
 public:
  Warp(const td_warp_call& call, Scratch& scratch) : call_(call) {
    blocks_ = static_cast<Block*>(scratch.get((call.out_w / kBlock + 1) * sizeof(Block)));
    for (int i = 0; i < kRun; ++i) count_[i] = float(i);
    for (int i = 0; i < kBytes; ++i) {
      // the weights of pixel i / 3, among the eight from `from(part)` on
      const int at = 2 * (i / 3 - from(i / kShorts));
      bytes_[2 * i] = uint8_t(at), bytes_[2 * i + 1] = uint8_t(at + 1);
    }
  }

  // Fetches the frame's rows that window row y is the first to show: a turned row shows a few pixels
  // of each of many rows, which the processor does not foresee.
  void fetch(int y, int x, int end) {
    if (x >= end) return;
    const int first = row_of(x, y), last = row_of(end - 1, y);
    int begin = std::max(fetched_, std::min(first, last));
    fetched_ = std::max(fetched_, std::min(std::max(first, last) + kAhead, call_.h));
    for (; begin < fetched_; ++begin) {
      const uint8_t* const row = call_.frame + begin * call_.stride_y;
      for (int at = 0; at < 3 * call_.w; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }

  // Samples the window's pixels x .. end of row y, all of which lie in the frame.
  void row(int y, int x, int end) {
    for (int at = x; at < end; at += kRun)
      find(blocks_ + (at - x) / kBlock, at, y, std::min(kRun, end - at));
    uint8_t* out = call_.out + (size_t(y) * call_.out_w + x) * 3;
    for (const Block* block = blocks_; x < end; x += kBlock, ++block, out += kBytes) {
      if (end - x >= kBlock) {
        blend(*block, out);
      } else {
        uint8_t last[kBytes];
        blend(*block, last);
        std::memcpy(out, last, size_t(end - x) * 3);
      }
    }
  }

 private:
  static constexpr int kBlock = 16, kBytes = 3 * kBlock, kRun = 4 * kBlock;
  static constexpr int kAhead = 4;
  // from so many pieces on it is faster to go pixel by pixel
  static constexpr int kPieces = 3;

  // Pixels of the window. The four pixels of the frame around each: of [row][0] the left ones, of [1]
  // the right ones; and the weights of the right ones and of the lower row, of 2^15.
  struct Block {
    const uint8_t* pixels[2][2];
    alignas(32) int16_t right[kBlock], lower[kBlock];
    // where the pixels are lined up, and room for what is written beyond them
    uint8_t lined[2][2][2 * kBytes];
  };

  static constexpr int from(int part) { return std::min(part * kShorts / 3, kBlock - 8); }

  // Finds `count` pixels from (x, y) on; the rest of the last block repeats the last one.
  void find(Block* block, int x, int y, int count) const {
    const double* const m = call_.to_frame;
    const double depth = m[6] * x + m[7] * y + m[8];
    const double fx = (m[0] * x + m[1] * y + m[2]) / depth;
    const double fy = (m[3] * x + m[4] * y + m[5]) / depth;
    const int left = whole(fx, call_.w - 2), top = whole(fy, call_.h - 2);
    const V by_x = vset(float(m[0] - fx * m[6])), by_y = vset(float(m[3] - fy * m[6]));
    const V at_x = vset(float(fx - left)), at_y = vset(float(fy - top));
    const V per_px = vset(float(m[6])), first = vset(float(depth)), last = vset(float(count - 1));
    // the pixel whose right or lower neighbour is the frame's last one
    const V least_x = vset(float(-left)), most_x = vset(float(call_.w - 2 - left));
    const V least_y = vset(float(-top)), most_y = vset(float(call_.h - 2 - top));
    const V scale = vset(32768), most = vset(32767), row = vset(float(call_.stride_y));
    const uint8_t* const base = call_.frame + top * call_.stride_y + 3 * left;
    // how far from `base` each pixel lies, in bytes; one that precedes the first
    alignas(64) float places[kRun + kWidth];
    alignas(64) int32_t offsets[kRun];
    float* const at = places + kWidth;
    at[-1] = NAN;
    for (int i = 0; i < round_up(count, kBlock); i += kWidth) {
      const V n = vmin(vload(count_ + i), last);
      const V way = vdiv(n, vadd(first, vmul(per_px, n)));
      const V px = vmax(vadd(at_x, vmul(by_x, way)), least_x);
      const V py = vmax(vadd(at_y, vmul(by_y, way)), least_y);
      const V ix = vmin(vfloor(px), most_x), iy = vmin(vfloor(py), most_y);
      Block& b = block[i / kBlock];
      store_whole(b.right + i % kBlock, vmin(vmul(vsub(px, ix), scale), most));
      store_whole(b.lower + i % kBlock, vmin(vmul(vsub(py, iy), scale), most));
      const V offset = vadd(vmul(iy, row), vmul(ix, vset(3)));
      vstore(at + i, offset);
      store_whole(offsets + i, offset);
    }
    for (int begin = 0; begin < count; begin += kBlock, ++block) {
      uint32_t breaks = 0;
      for (int i = 0; i < kBlock; i += kWidth) {
        const float* const p = at + begin + i;
        breaks |= vbits(vne(vsub(vload(p), vload(p - 1)), vset(3))) << i;
      }
      // bit i: pixel i does not lie right beside the one before
      breaks &= ~1u;
      const uint8_t* const from = base + offsets[begin];
      if (breaks) {
        line_up(*block, base, offsets + begin, breaks);
      } else {
        block->pixels[0][0] = from;
        block->pixels[0][1] = from + 3;
        block->pixels[1][0] = from + call_.stride_y;
        block->pixels[1][1] = from + call_.stride_y + 3;
      }
    }
  }

  // the whole number below, kept in 0 .. most; of NaN 0
  static int whole(double x, int most) { return x > 0 ? int(std::min(x, double(most))) : 0; }

  // breaks: which pixels do not lie right beside the one before, the first one apart
  void line_up(Block& block, const uint8_t* base, const int32_t* offsets, uint32_t breaks) const {
    // rows rise or fall along the block, a row up or down by rounding; up to a block's bytes are read
    // from each pixel on, and behind the frame's last row nothing may be read
    const int32_t farthest = std::max(offsets[0], offsets[kBlock - 1]);
    const bool at_end = call_.w < kBlock + 4 ||
                        base + farthest - call_.frame >= (call_.h - 3) * call_.stride_y;
    const int pieces = __builtin_popcount(breaks) + 1;
    for (int r = 0; r < 2; ++r) {
      const uint8_t* const row = base + r * call_.stride_y;
      uint8_t* const lefts = block.lined[r][0];
      uint8_t* const rights = block.lined[r][1];
      if (at_end) {
        for (int i = 0; i < kBlock; ++i) {
          std::memcpy(lefts + 3 * i, row + offsets[i], 3);
          std::memcpy(rights + 3 * i, row + offsets[i] + 3, 3);
        }
      } else if (pieces <= kPieces) {
        // each piece as long as a block: the next one puts right what follows it
        for (uint32_t begins = breaks | 1; begins; begins &= begins - 1) {
          const int i = __builtin_ctz(begins);
          std::memcpy(lefts + 3 * i, row + offsets[i], kBytes);
          std::memcpy(rights + 3 * i, row + offsets[i] + 3, kBytes);
        }
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < kBlock; i += 2)
          line_up_two(row + offsets[i], row + offsets[i + 1], lefts + 3 * i, rights + 3 * i);
      }
      block.pixels[r][0] = lefts;
      block.pixels[r][1] = rights;
    }
  }

  void blend(const Block& block, uint8_t* out) const {
    for (int part = 0; part < kBytes / kShorts; ++part) {
      const int at = part * kShorts;
      const S lower = spread(block.lower + from(part), bytes_ + 2 * at);
      const S right = spread(block.right + from(part), bytes_ + 2 * at);
      S columns[2];
      for (int c = 0; c < 2; ++c) {
        const S above = load_bytes(block.pixels[0][c] + at), below = load_bytes(block.pixels[1][c] + at);
        columns[c] = sadd(above, smul(ssub(below, above), lower));
      }
      store_bytes(out + at, sadd(columns[0], smul(ssub(columns[1], columns[0]), right)));
    }
  }

  int row_of(int x, int y) const {
    const double* const m = call_.to_frame;
    return whole((m[3] * x + m[4] * y + m[5]) / (m[6] * x + m[7] * y + m[8]), call_.h - 1);
  }

  const td_warp_call& call_;
  int fetched_ = 0;
  Block* blocks_;
  alignas(64) float count_[kRun];
  uint8_t bytes_[2 * kBytes];
};

// Rows y0 .. y1 of a window; of row y the columns spans[2 y] .. spans[2 y + 1] lie in the frame.
inline void warp_rows(const td_warp_call& call, const int32_t* spans, int y0, int y1,
                      Scratch& scratch) {
  Warp warp(call, scratch);
  for (int y = y0; y < y1; ++y) {
    const int x = spans[2 * y], end = spans[2 * y + 1];
    warp.fetch(y, x, end);
    uint8_t* const out = call.out + size_t(y) * call.out_w * 3;
    std::memset(out, 0, size_t(x) * 3);
    std::memset(out + size_t(end) * 3, 0, size_t(call.out_w - end) * 3);
    warp.row(y, x, end);
  }
}

}  // namespace TD_ISA
}  // namespace td
