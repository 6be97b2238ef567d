// The register block: M pixels by NV vectors of output channels stay in registers while a loop over
// taps and input channels broadcasts each input number straight from its pixel's row in the state and
// multiplies it with packed weights.
#pragma once

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

// Adds numbers k0 .. k1 of each run to the sums.
template <int M, int NV>
TD_INLINE void accumulate(const Rows<float>& rows, int k0, int k1, const float* weights,
                          V (&sum)[M][NV]) {
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
}

#if defined(TD_AVX512_BF16)
// as above in pairs of numbers; an odd last one is paired with 0
template <int M, int NV>
TD_INLINE void accumulate(const Rows<bf16>& rows, int k0, int k1, const uint32_t* weights,
                          V (&sum)[M][NV]) {
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
        for (int v = 0; v < NV; ++v) sum[m][v].v = _mm512_dpbf16_ps(sum[m][v].v, x, w[v]);
      }
      weights += NV * kWidth;
    }
    if (k == k1) continue;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(in[m][k].bits);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v)
        sum[m][v].v = _mm512_dpbf16_ps(sum[m][v].v, x,
                                       (__m512bh)_mm512_loadu_si512(weights + v * kWidth));
    }
    weights += NV * kWidth;
  }
}
#endif

// Adds numbers k0 .. k1 of each run to the sums acc [M][kRow]; bias: what the sums start from, null:
// from acc.
template <class T, int M, int NV>
void multiply(const Rows<T>& rows, int k0, int k1, const typename Multiply<T>::Weight* weights,
              float* acc, const float* bias) {
  V sum[M][NV];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v)
      sum[m][v] = vload(bias ? bias + v * kWidth : acc + m * kRow + v * kWidth);
  accumulate<M, NV>(rows, k0, k1, weights, sum);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) vstore(acc + m * kRow + v * kWidth, sum[m][v]);
}

// Where the pixels of a register block are completed.
template <class T>
struct Targets {
  T* const* stored;        // per pixel, its first channel
  const T* const* others;  // the residual's, null: none
  int c0, tail;            // first channel; channels of the last vector
  uint32_t gated;          // bit m: pixel m is compared with what is stored
};

// Computes a whole sum and completes its pixels without storing it; says which it published, bit m
// for pixel m.
template <class T, int M, int NV>
uint32_t multiply_complete(const Rows<T>& rows, int k0, int k1,
                           const typename Multiply<T>::Weight* weights, const float* bias,
                           const Rule& shared_rule, const Targets<T>& to) {
  V sum[M][NV];
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) sum[0][v] = vload(bias + v * kWidth);
#pragma GCC unroll 16
  for (int m = 1; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sum[m][v] = sum[0][v];
  accumulate<M, NV>(rows, k0, k1, weights, sum);
  // a copy that no store can reach
  const Rule rule = shared_rule;
  uint32_t published = 0;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const T* const other = to.others ? to.others[m] + to.c0 : nullptr;
    const bool gated = to.gated >> m & 1;
    if (rule.complete<T, NV>(sum[m], other, to.tail, gated, to.stored[m] + to.c0))
      published |= uint32_t(1) << m;
  }
  return published;
}

template <class T>
using Multiplier = void (*)(const Rows<T>&, int, int, const typename Multiply<T>::Weight*, float*,
                            const float*);

template <class T>
using Completer = uint32_t (*)(const Rows<T>&, int, int, const typename Multiply<T>::Weight*,
                               const float*, const Rule&, const Targets<T>&);

// The kernels of a register block of M pixels.
template <class T>
struct Block {
  Multiplier<T> multiply;
  Completer<T> complete;
};

template <class T, int NV, int M>
constexpr Block<T> block_of() {
  if constexpr (M <= kPixels[NV])
    return {&multiply<T, M, NV>, &multiply_complete<T, M, NV>};
  else
    return {nullptr, nullptr};
}

template <class T, int NV>
const Block<T>& block_for(int m) {
  static constexpr Block<T> table[kMostPixels + 1] = {
      {nullptr, nullptr},
      block_of<T, NV, 1>(), block_of<T, NV, 2>(), block_of<T, NV, 3>(), block_of<T, NV, 4>(),
      block_of<T, NV, 5>(), block_of<T, NV, 6>(), block_of<T, NV, 7>(), block_of<T, NV, 8>(),
      block_of<T, NV, 9>(), block_of<T, NV, 10>(), block_of<T, NV, 11>(), block_of<T, NV, 12>(),
  };
  return table[m];
}

template <class T>
const Block<T>& register_block(int nv, int m) {
#if !defined(TD_AVX2)
  if (nv == 4) return block_for<T, 4>(m);
  if (nv == 3) return block_for<T, 3>(m);
#endif
  if (nv == 2) return block_for<T, 2>(m);
  return block_for<T, 1>(m);
}

}  // namespace TD_ISA
}  // namespace td
