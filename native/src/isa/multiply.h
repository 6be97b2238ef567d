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

}  // namespace TD_ISA
}  // namespace td
