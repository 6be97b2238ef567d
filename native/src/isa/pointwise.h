// Elementwise functions of one and two numbers, lane by lane.
#pragma once

#include <cfloat>
#include <cmath>

#include "../names.h"
#include "simd.h"

namespace td {

namespace TD_ISA {

// c[0] + c[1] x + c[2] x^2 ...
template <int N>
TD_INLINE V polynomial(const float (&c)[N], V x) {
  V sum = vset(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = vfma(sum, x, vset(c[i]));
  return sum;
}

// ln 2 in two parts: the first has few digits, so that small multiples of it are exact
constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;

// x = n * ln 2 + r with |r| <= ln 2 / 2; returns e^r - 1
TD_INLINE V reduced_expm1(V x, V& n) {
  // minimax of (e^r - 1 - r) / r^2, relative error of e^r 3.3e-9
  static constexpr float kTail[] = {0x1.fffffcp-2f, 0x1.55548ap-3f, 0x1.555916p-5f,
                                    0x1.123fc6p-7f, 0x1.6a1a72p-10f};
  n = vround(vmul(x, vset(0x1.715476p+0f)));
  const V r = vfma(n, vset(-kLn2Low), vfma(n, vset(-kLn2High), x));
  return vfma(vmul(r, r), polynomial(kTail, r), r);
}

TD_INLINE V vexp(V x) {
  // beyond these e^x is inf and 0 anyway
  x = vmin(vset(89), vmax(vset(-104), x));
  V n;
  const V part = reduced_expm1(x, n);
  return vscale2(vadd(vset(1), part), n);
}

// e^x - 1 for x <= 0, exact to a rounding near 0 too
TD_INLINE V vexpm1_below_0(V x) {
  // beyond this the result rounds to -1
  x = vmax(vset(-25), x);
  V n;
  const V part = reduced_expm1(x, n);
  const V scale = vscale2(vset(1), n);
  return vfma(scale, part, vsub(scale, vset(1)));
}

// ln((1 + s) / (1 - s)) for |s| <= 1/3
TD_INLINE V log_of_ratio(V s) {
  // minimax of (ln((1 + s) / (1 - s)) - 2 s) / s^3 in s^2, relative error of the result 1.2e-10
  static constexpr float kTail[] = {0x1.555558p-1f, 0x1.99968ep-2f, 0x1.250ca4p-2f, 0x1.b68810p-3f,
                                    0x1.f2f5c8p-3f};
  const V square = vmul(s, s);
  return vfma(vmul(s, square), polynomial(kTail, square), vadd(s, s));
}

TD_INLINE V vlog(V x) {
  const Mask subnormal = vlt(x, vset(FLT_MIN));
  const V normal = vselect(subnormal, vmul(x, vset(0x1p23f)), x);
  V n = vadd(vexponent(normal), vselect(subnormal, vset(-23), vzero()));
  V m = vmantissa(normal);
  const Mask high = vlt(vset(0x1.6a09e6p+0f), m);
  m = vselect(high, vmul(m, vset(0.5f)), m);
  n = vselect(high, vadd(n, vset(1)), n);
  const V part = log_of_ratio(vdiv(vsub(m, vset(1)), vadd(m, vset(1))));
  const V log = vfma(n, vset(kLn2High), vfma(n, vset(kLn2Low), part));
  const V finite = vselect(vlt(x, vset(INFINITY)), log, x);
  return vselect(vle(x, vzero()), vselect(vlt(x, vzero()), vset(NAN), vset(-INFINITY)), finite);
}

// ln(1 + e^-|x|)
TD_INLINE V vlog1p_exp(V x) {
  const V e = vexp(vsub(vzero(), vabs(x)));
  return log_of_ratio(vdiv(e, vadd(e, vset(2))));
}

// x / (1 + e^-y)
TD_INLINE V times_sigmoid(V x, V y) {
  return vdiv(x, vadd(vset(1), vexp(vsub(vzero(), y))));
}

// from e^(-2|x|) - 1, which keeps its digits where x is small
TD_INLINE V vtanh(V x) {
  const V e = vexpm1_below_0(vmul(vset(-2), vabs(x)));
  const V size = vdiv(e, vadd(e, vset(2)));
  return vselect(vlt(x, vzero()), size, vsub(vzero(), size));
}

// x * Phi(x), Phi(-a) = e^(-a^2 / 2) * R(1 / (1 + 0.3 a)) for a >= 0
TD_INLINE V vgelu(V x) {
  // minimax of R(t) / t, error of Phi 8.7e-9
  static constexpr float kTail[] = {0x1.ea0470p-4f,  0x1.ee6b1cp-4f, 0x1.9a10a0p-4f,
                                    0x1.06976ep-3f,  -0x1.b77db4p-5f, 0x1.a7e0e4p-3f,
                                    -0x1.436ed6p-3f, 0x1.265772p-5f};
  const V a = vabs(x);
  const V t = vdiv(vset(1), vfma(vset(0.3f), a, vset(1)));
  const V bell = vexp(vmul(vmul(vset(-0.5f), a), a));
  const V below = vmul(vmul(bell, t), polynomial(kTail, t));
  return vmul(x, vselect(vlt(x, vzero()), below, vsub(vset(1), below)));
}

TD_INLINE V vgelu_tanh(V x) {
  // 0.5 (1 + tanh(u)) = 1 / (1 + e^-2u) with 2u = sqrt(8 / pi) (x + 0.044715 x^3)
  const V cube = vmul(vmul(x, x), x);
  return times_sigmoid(x, vmul(vset(1.5957691216f), vfma(vset(0.044715f), cube, x)));
}

// tanh(ln(1 + e^x)) = d / (d + 2) with d = e^x (e^x + 2)
TD_INLINE V vmish(V x) {
  // beyond 20 the factor rounds to 1
  const V e = vexp(vmin(vset(20), x));
  const V d = vmul(e, vadd(e, vset(2)));
  return vmul(x, vdiv(d, vadd(d, vset(2))));
}

TD_INLINE V vsoftplus(V x, float beta, float threshold) {
  const V y = vmul(x, vset(beta));
  const V soft = vdiv(vadd(vmax(vzero(), y), vlog1p_exp(y)), vset(beta));
  return vselect(vlt(vset(threshold), y), x, soft);
}

TD_INLINE V velu(V x, float alpha, float scale, float input_scale) {
  const V below = vexpm1_below_0(vmin(vzero(), vmul(x, vset(input_scale))));
  return vselect(vle(x, vzero()), vmul(below, vset(alpha * scale)), vmul(x, vset(scale)));
}

TD_INLINE V vclamp(V x, float low, float high) { return vmin(vset(high), vmax(vset(low), x)); }

TD_INLINE V vhardsigmoid(V x) {
  return vmul(vclamp(vadd(x, vset(3)), 0, 6), vset(1.0f / 6));
}

// NaN has no sign
TD_INLINE V vsign(V x) {
  return vselect(vlt(vzero(), x), vset(1), vselect(vlt(x, vzero()), vset(-1), vzero()));
}

// number by number, where there is no vector form
inline __attribute__((noinline)) V vpow(V a, V b) {
  float x[kWidth], y[kWidth];
  vstore(x, a);
  vstore(y, b);
  for (int i = 0; i < kWidth; ++i) x[i] = std::pow(x[i], y[i]);
  return vload(x);
}

// f(a, b); add and sub take a +- alpha * b
TD_INLINE V binary(int fn, float alpha, V a, V b) {
  switch (static_cast<Fn2>(fn)) {
    case Fn2::add: return vfma(vset(alpha), b, a);
    case Fn2::sub: return vfma(vset(-alpha), b, a);
    case Fn2::mul: return vmul(a, b);
    case Fn2::div: return vdiv(a, b);
    case Fn2::maximum: return vmax_nan(a, b);
    case Fn2::minimum: return vmin_nan(a, b);
    case Fn2::pow: return vpow(a, b);
  }
  return a;
}

// whole vectors: what lies behind the row's n numbers may change
template <class F>
TD_INLINE void each_vector(float* row, int n, F f) {
  for (int c = 0; c < n; c += kWidth) vstore(row + c, f(vload(row + c)));
}

template <class F>
TD_INLINE void each_number(float* row, int n, F f) {
  for (int c = 0; c < n; ++c) row[c] = f(row[c]);
}

// Functions that are rarely wanted, out of the way of the others.
inline __attribute__((noinline)) void apply_scalar(int fn, float* row, int n) {
  switch (static_cast<Fn>(fn)) {
    case Fn::expm1: return each_number(row, n, [](float x) { return std::expm1(x); });
    case Fn::log1p: return each_number(row, n, [](float x) { return std::log1p(x); });
    case Fn::log2: return each_number(row, n, [](float x) { return std::log2(x); });
    case Fn::log10: return each_number(row, n, [](float x) { return std::log10(x); });
    case Fn::erf: return each_number(row, n, [](float x) { return std::erf(x); });
    case Fn::sin: return each_number(row, n, [](float x) { return std::sin(x); });
    case Fn::cos: return each_number(row, n, [](float x) { return std::cos(x); });
    case Fn::tan: return each_number(row, n, [](float x) { return std::tan(x); });
    case Fn::sinh: return each_number(row, n, [](float x) { return std::sinh(x); });
    case Fn::cosh: return each_number(row, n, [](float x) { return std::cosh(x); });
    case Fn::asin: return each_number(row, n, [](float x) { return std::asin(x); });
    case Fn::acos: return each_number(row, n, [](float x) { return std::acos(x); });
    case Fn::atan: return each_number(row, n, [](float x) { return std::atan(x); });
    case Fn::asinh: return each_number(row, n, [](float x) { return std::asinh(x); });
    case Fn::acosh: return each_number(row, n, [](float x) { return std::acosh(x); });
    case Fn::atanh: return each_number(row, n, [](float x) { return std::atanh(x); });
    default: return;
  }
}

// All but the few functions of `apply_pointwise`: one copy, or every kernel would carry them all.
inline __attribute__((noinline)) void apply_function(int fn, const float* args, const float* slope,
                                                     float* row, int n) {
  const float a = args[0], b = args[1], c = args[2];
  switch (static_cast<Fn>(fn)) {
    case Fn::prelu:
      for (int i = 0; i < n; i += kWidth) {
        const V x = vload(row + i), below = vmul(x, vload_some(slope + i, n - i));
        vstore(row + i, vselect(vlt(x, vzero()), below, x));
      }
      return;
    case Fn::elu: return each_vector(row, n, [=](V x) { return velu(x, a, b, c); });
    case Fn::threshold:
      return each_vector(row, n, [=](V x) { return vselect(vle(x, vset(a)), vset(b), x); });
    case Fn::hardshrink:
      return each_vector(row, n, [=](V x) { return vselect(vle(vabs(x), vset(a)), vzero(), x); });
    case Fn::softshrink:
      return each_vector(row, n, [=](V x) { return vsub(x, vclamp(x, -a, a)); });
    case Fn::abs: return each_vector(row, n, [](V x) { return vabs(x); });
    case Fn::neg: return each_vector(row, n, [](V x) { return vmul(x, vset(-1)); });
    case Fn::square: return each_vector(row, n, [](V x) { return vmul(x, x); });
    case Fn::sqrt: return each_vector(row, n, [](V x) { return vsqrt(x); });
    case Fn::rsqrt: return each_vector(row, n, [](V x) { return vdiv(vset(1), vsqrt(x)); });
    case Fn::reciprocal: return each_vector(row, n, [](V x) { return vdiv(vset(1), x); });
    case Fn::sign: return each_vector(row, n, [](V x) { return vsign(x); });
    case Fn::floor: return each_vector(row, n, [](V x) { return vfloor(x); });
    case Fn::ceil: return each_vector(row, n, [](V x) { return vceil(x); });
    case Fn::round: return each_vector(row, n, [](V x) { return vround(x); });
    case Fn::trunc: return each_vector(row, n, [](V x) { return vtrunc(x); });
    case Fn::hardsigmoid: return each_vector(row, n, [](V x) { return vhardsigmoid(x); });
    case Fn::sigmoid: return each_vector(row, n, [](V x) { return times_sigmoid(vset(1), x); });
    case Fn::silu: return each_vector(row, n, [](V x) { return times_sigmoid(x, x); });
    case Fn::tanh: return each_vector(row, n, [](V x) { return vtanh(x); });
    case Fn::gelu_erf: return each_vector(row, n, [](V x) { return vgelu(x); });
    case Fn::gelu_tanh: return each_vector(row, n, [](V x) { return vgelu_tanh(x); });
    case Fn::mish: return each_vector(row, n, [](V x) { return vmish(x); });
    case Fn::softplus: return each_vector(row, n, [=](V x) { return vsoftplus(x, a, b); });
    case Fn::log_sigmoid:
      return each_vector(row, n, [](V x) { return vsub(vmin(vzero(), x), vlog1p_exp(x)); });
    case Fn::exp: return each_vector(row, n, [](V x) { return vexp(x); });
    case Fn::log: return each_vector(row, n, [](V x) { return vlog(x); });
    default: return apply_scalar(fn, row, n);
  }
}

// row [n], in place; slope: one per channel of the row, null but for prelu
TD_INLINE void apply_pointwise(int fn, const float* args, const float* slope, float* row, int n) {
  switch (static_cast<Fn>(fn)) {
    case Fn::relu: return each_vector(row, n, [](V x) { return vmax(vzero(), x); });
    case Fn::clamp: return each_vector(row, n, [=](V x) { return vclamp(x, args[0], args[1]); });
    case Fn::leaky_relu:
      return each_vector(row, n, [=](V x) {
        return vselect(vlt(vzero(), x), x, vmul(x, vset(args[0])));
      });
    case Fn::hardswish: return each_vector(row, n, [](V x) { return vmul(x, vhardsigmoid(x)); });
    default: return apply_function(fn, args, slope, row, n);
  }
}

}  // namespace TD_ISA
}  // namespace td
