// One vector type for every instruction set: `V` holds `kWidth` floats.
//
// Every function works lane by lane, so a channel's result does not depend on the lane it falls on;
// loads of fewer than kWidth numbers fill up with 0. vmax(a, b) and vmin(a, b) return b where either
// is NaN on x86, NaN on NEON: kernels put the number that must survive second.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(TD_AVX512) || defined(TD_AVX512_BF16) || defined(TD_AVX2)
#include <immintrin.h>
#elif defined(TD_NEON)
#include <arm_neon.h>
#else
#error "compile with one of TD_AVX512_BF16, TD_AVX512, TD_AVX2, TD_NEON"
#endif

#define TD_INLINE inline __attribute__((always_inline))

namespace td {
namespace TD_ISA {

// bfloat16 as stored: the upper half of a float
struct bf16 {
  uint16_t bits;
};

TD_INLINE float to_float(float x) { return x; }
TD_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
// round to nearest even, NaN stays NaN
TD_INLINE bf16 to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <class T>
TD_INLINE T from_float(float f);
template <>
TD_INLINE float from_float<float>(float f) {
  return f;
}
template <>
TD_INLINE bf16 from_float<bf16>(float f) {
  return to_bf16(f);
}

#if defined(TD_AVX512) || defined(TD_AVX512_BF16)

constexpr int kWidth = 16;
struct V {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};
TD_INLINE __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }
TD_INLINE V vzero() { return {_mm512_setzero_ps()}; }
TD_INLINE V vset(float x) { return {_mm512_set1_ps(x)}; }
TD_INLINE V vload(const float* p) { return {_mm512_loadu_ps(p)}; }
TD_INLINE V vload(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
TD_INLINE void vstore(float* p, V a) { _mm512_storeu_ps(p, a.v); }
TD_INLINE void vstore(float* p, V a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
TD_INLINE V widen(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
TD_INLINE __m256i narrow(V a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
TD_INLINE V vload(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
TD_INLINE V vload(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
TD_INLINE void vstore(bf16* p, V a) { _mm256_storeu_si256((__m256i*)p, narrow(a)); }
TD_INLINE void vstore(bf16* p, V a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a));
}
TD_INLINE V vload(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
TD_INLINE V vadd(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
TD_INLINE V vsub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
TD_INLINE V vmul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
TD_INLINE V vdiv(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
TD_INLINE V vfma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TD_INLINE V vmax(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
TD_INLINE V vmin(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
TD_INLINE V vsqrt(V a) { return {_mm512_sqrt_ps(a.v)}; }
TD_INLINE V vabs(V a) { return {_mm512_abs_ps(a.v)}; }
// to nearest, ties to even
TD_INLINE V vround(V a) { return {_mm512_roundscale_ps(a.v, 0x08)}; }
TD_INLINE V vfloor(V a) { return {_mm512_roundscale_ps(a.v, 0x09)}; }
TD_INLINE V vceil(V a) { return {_mm512_roundscale_ps(a.v, 0x0a)}; }
TD_INLINE V vtrunc(V a) { return {_mm512_roundscale_ps(a.v, 0x0b)}; }
TD_INLINE Mask vlt(V a, V b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
TD_INLINE Mask vle(V a, V b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
TD_INLINE Mask vne(V a, V b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)}; }
TD_INLINE V vselect(Mask m, V yes, V no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
TD_INLINE bool vany(Mask m) { return m.m != 0; }
// bit i: lane i
TD_INLINE uint32_t vbits(Mask m) { return m.m; }
TD_INLINE Mask vor(Mask a, Mask b) { return {__mmask16(a.m | b.m)}; }
TD_INLINE float vsum(V a) { return _mm512_reduce_add_ps(a.v); }
TD_INLINE float vlargest(V a) { return _mm512_reduce_max_ps(a.v); }
// a * 2^n for whole n in -252 .. 254
TD_INLINE V vscale2(V a, V n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// a = mantissa * 2^exponent with 1 <= mantissa < 2, for normal a > 0
TD_INLINE V vexponent(V a) { return {_mm512_getexp_ps(a.v)}; }
TD_INLINE V vmantissa(V a) {
  return {_mm512_getmant_ps(a.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)};
}

#elif defined(TD_AVX2)

constexpr int kWidth = 8;
struct V {
  __m256 v;
};
struct Mask {
  __m256 m;
};
TD_INLINE __m256i first_lanes(int n) {
  alignas(32) static const int32_t table[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i*)(table + 8 - n));
}
TD_INLINE V vzero() { return {_mm256_setzero_ps()}; }
TD_INLINE V vset(float x) { return {_mm256_set1_ps(x)}; }
TD_INLINE V vload(const float* p) { return {_mm256_loadu_ps(p)}; }
TD_INLINE V vload(const float* p, int n) {
  return n == kWidth ? vload(p) : V{_mm256_maskload_ps(p, first_lanes(n))};
}
TD_INLINE void vstore(float* p, V a) { _mm256_storeu_ps(p, a.v); }
TD_INLINE void vstore(float* p, V a, int n) {
  if (n == kWidth)
    vstore(p, a);
  else
    _mm256_maskstore_ps(p, first_lanes(n), a.v);
}
TD_INLINE V vload(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)))};
}
TD_INLINE V vadd(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
TD_INLINE V vsub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
TD_INLINE V vmul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
TD_INLINE V vdiv(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
TD_INLINE V vfma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
TD_INLINE V vmax(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
TD_INLINE V vmin(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
TD_INLINE V vsqrt(V a) { return {_mm256_sqrt_ps(a.v)}; }
TD_INLINE V vabs(V a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
TD_INLINE V vround(V a) { return {_mm256_round_ps(a.v, 0x08)}; }
TD_INLINE V vfloor(V a) { return {_mm256_round_ps(a.v, 0x09)}; }
TD_INLINE V vceil(V a) { return {_mm256_round_ps(a.v, 0x0a)}; }
TD_INLINE V vtrunc(V a) { return {_mm256_round_ps(a.v, 0x0b)}; }
TD_INLINE Mask vlt(V a, V b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
TD_INLINE Mask vle(V a, V b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
TD_INLINE Mask vne(V a, V b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)}; }
TD_INLINE V vselect(Mask m, V yes, V no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
TD_INLINE bool vany(Mask m) { return _mm256_movemask_ps(m.m) != 0; }
TD_INLINE uint32_t vbits(Mask m) { return uint32_t(_mm256_movemask_ps(m.m)); }
TD_INLINE Mask vor(Mask a, Mask b) { return {_mm256_or_ps(a.m, b.m)}; }
TD_INLINE float vsum(V a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
TD_INLINE float vlargest(V a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
TD_INLINE V vscale2(V a, V n) {
  // in two steps: 2^n itself may be no number
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i f = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(e)), _mm256_castsi256_ps(f))};
}
TD_INLINE V vexponent(V a) {
  const __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a.v), 23);
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)))};
}
TD_INLINE V vmantissa(V a) {
  const __m256 low = _mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffff)));
  return {_mm256_or_ps(low, _mm256_set1_ps(1.0f))};
}

#elif defined(TD_NEON)

constexpr int kWidth = 4;
struct V {
  float32x4_t v;
};
struct Mask {
  uint32x4_t m;
};
TD_INLINE V vzero() { return {vdupq_n_f32(0)}; }
TD_INLINE V vset(float x) { return {vdupq_n_f32(x)}; }
TD_INLINE V vload(const float* p) { return {vld1q_f32(p)}; }
TD_INLINE V vload(const float* p, int n) {
  if (n == kWidth) return vload(p);
  float part[4] = {0, 0, 0, 0};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return vload(part);
}
TD_INLINE void vstore(float* p, V a) { vst1q_f32(p, a.v); }
TD_INLINE void vstore(float* p, V a, int n) {
  if (n == kWidth) {
    vstore(p, a);
    return;
  }
  float part[4];
  vst1q_f32(part, a.v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}
TD_INLINE V vload(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, 4);
  const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))};
}
TD_INLINE V vadd(V a, V b) { return {vaddq_f32(a.v, b.v)}; }
TD_INLINE V vsub(V a, V b) { return {vsubq_f32(a.v, b.v)}; }
TD_INLINE V vmul(V a, V b) { return {vmulq_f32(a.v, b.v)}; }
TD_INLINE V vdiv(V a, V b) { return {vdivq_f32(a.v, b.v)}; }
TD_INLINE V vfma(V a, V b, V c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
TD_INLINE V vmax(V a, V b) { return {vmaxq_f32(a.v, b.v)}; }
TD_INLINE V vmin(V a, V b) { return {vminq_f32(a.v, b.v)}; }
TD_INLINE V vsqrt(V a) { return {vsqrtq_f32(a.v)}; }
TD_INLINE V vabs(V a) { return {vabsq_f32(a.v)}; }
TD_INLINE V vround(V a) { return {vrndnq_f32(a.v)}; }
TD_INLINE V vfloor(V a) { return {vrndmq_f32(a.v)}; }
TD_INLINE V vceil(V a) { return {vrndpq_f32(a.v)}; }
TD_INLINE V vtrunc(V a) { return {vrndq_f32(a.v)}; }
TD_INLINE Mask vlt(V a, V b) { return {vcltq_f32(a.v, b.v)}; }
TD_INLINE Mask vle(V a, V b) { return {vcleq_f32(a.v, b.v)}; }
TD_INLINE Mask vne(V a, V b) { return {vmvnq_u32(vceqq_f32(a.v, b.v))}; }
TD_INLINE V vselect(Mask m, V yes, V no) { return {vbslq_f32(m.m, yes.v, no.v)}; }
TD_INLINE bool vany(Mask m) { return vmaxvq_u32(m.m) != 0; }
TD_INLINE uint32_t vbits(Mask m) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(m.m, bit));
}
TD_INLINE Mask vor(Mask a, Mask b) { return {vorrq_u32(a.m, b.m)}; }
TD_INLINE float vsum(V a) { return vaddvq_f32(a.v); }
TD_INLINE float vlargest(V a) { return vmaxvq_f32(a.v); }
TD_INLINE V vscale2(V a, V n) {
  // in two steps: 2^n itself may be no number
  const int32x4_t whole = vcvtnq_s32_f32(n.v), half = vshrq_n_s32(whole, 1);
  const int32x4_t bias = vdupq_n_s32(127);
  const int32x4_t e = vshlq_n_s32(vaddq_s32(half, bias), 23);
  const int32x4_t f = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
  return {vmulq_f32(vmulq_f32(a.v, vreinterpretq_f32_s32(e)), vreinterpretq_f32_s32(f))};
}
TD_INLINE V vexponent(V a) {
  const int32x4_t e = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(a.v), 23));
  return {vcvtq_f32_s32(vsubq_s32(e, vdupq_n_s32(127)))};
}
TD_INLINE V vmantissa(V a) {
  const uint32x4_t low = vandq_u32(vreinterpretq_u32_f32(a.v), vdupq_n_u32(0x7fffff));
  return {vreinterpretq_f32_u32(vorrq_u32(low, vdupq_n_u32(0x3f800000)))};
}

#endif

// the second number, unless the first is NaN: NaN of either side survives
TD_INLINE V vmax_nan(V a, V b) { return vselect(vne(a, a), a, vmax(a, b)); }
TD_INLINE V vmin_nan(V a, V b) { return vselect(vne(a, a), a, vmin(a, b)); }

// the numbers that are left of a row, as many as a vector takes
template <class T>
TD_INLINE V vload_some(const T* p, int left) {
  return left >= kWidth ? vload(p) : vload(p, left);
}

// what a number becomes when it is stored as T
template <class T>
TD_INLINE V as_stored(V a);
template <>
TD_INLINE V as_stored<float>(V a) {
  return a;
}
#if defined(TD_AVX512) || defined(TD_AVX512_BF16)
template <>
TD_INLINE V as_stored<bf16>(V a) {
  return widen(narrow(a));
}
#endif

// asks for the cache lines of n numbers
template <class T>
TD_INLINE void fetch(const T* p, int n) {
  const char* at = reinterpret_cast<const char*>(p);
  for (const char* const end = at + n * sizeof(T); at < end; at += 64) __builtin_prefetch(at);
}

// the first n lanes, 0 in the others
TD_INLINE V vfirst(V a, int n) {
#if defined(TD_AVX512) || defined(TD_AVX512_BF16)
  return {_mm512_maskz_mov_ps(first_lanes(n), a.v)};
#else
  if (n == kWidth) return a;
  alignas(64) float part[kWidth];
  vstore(part, a);
  return vload(part, n);
#endif
}

constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

}  // namespace TD_ISA
}  // namespace td
