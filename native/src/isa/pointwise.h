// Elementwise functions of one and two numbers, lane by lane.
#pragma once

#include "simd.h"

namespace td {

// Order of POINTWISE in `engines/cpu/blob.py`; a, b, c are the part's arguments.
enum class Fn : int {
  relu,
  clamp,       // to a .. b
  leaky_relu,  // slope a
  prelu,
  elu,         // a: alpha, b: scale, c: input scale
  threshold,   // x > a ? x : b
  hardshrink,  // a: lambda
  softshrink,  // a: lambda
  abs,
  neg,
  square,
  sqrt,
  rsqrt,
  reciprocal,
  sign,
  floor,
  ceil,
  round,
  trunc,
  hardsigmoid,
  hardswish,
  sigmoid,
  silu,
  tanh,
  gelu_erf,
  gelu_tanh,
  mish,
  softplus,  // a: beta, b: threshold
  log_sigmoid,
  exp,
  expm1,
  log,
  log1p,
  log2,
  log10,
  erf,
  sin,
  cos,
  tan,
  sinh,
  cosh,
  asin,
  acos,
  atan,
  asinh,
  acosh,
  atanh,
};

// Order of BINARY in `engines/cpu/blob.py`.
enum class Fn2 : int { add, sub, mul, div, maximum, minimum, pow };

namespace TD_ISA {

// f(a, b); add and sub take a +- alpha * b
TD_INLINE V binary(int fn, float alpha, V a, V b) {
  switch (static_cast<Fn2>(fn)) {
    case Fn2::add:
      return vfma(vset(alpha), b, a);
    case Fn2::sub:
      return vfma(vset(-alpha), b, a);
    case Fn2::mul:
      return vmul(a, b);
    default:
      return a;
  }
}

// row [n], in place; slope: one per channel of the row, or null
TD_INLINE void apply_pointwise(int fn, const float* args, const float* slope, float* row, int n) {
  (void)slope;
  switch (static_cast<Fn>(fn)) {
    case Fn::relu:
      for (int c = 0; c < n; c += kWidth) vstore(row + c, vmax(vzero(), vload(row + c)));
      return;
    case Fn::clamp:
      for (int c = 0; c < n; c += kWidth)
        vstore(row + c, vmin(vset(args[1]), vmax(vset(args[0]), vload(row + c))));
      return;
    default:
      return;
  }
}

}  // namespace TD_ISA
}  // namespace td
