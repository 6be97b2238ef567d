// Operations and elementwise functions by name: each list makes an enum, and what `td_names` tells the
// Python side, which has no numbers of its own for them (`engines/cpu/bind.py`).
#pragma once

namespace td {

#define TD_OPERATIONS(X)                                                                          \
  X(foreign) X(conv2d) X(conv_transpose2d) X(max_pool2d) X(avg_pool2d) X(adaptive_avg)            \
  X(adaptive_max) X(tile_sum) X(tile_max) X(global_avg) X(global_max) X(pointwise) X(affine)      \
  X(binary) X(constant) X(softmax) X(log_softmax) X(bilinear) X(remap) X(pixel_shuffle)           \
  X(pixel_unshuffle) X(reshape) X(copy)

// What their arguments a, b, c mean says `Function` in ops/functions.py.
#define TD_FUNCTIONS(X)                                                                           \
  X(relu) X(clamp) X(leaky_relu) X(prelu) X(elu) X(threshold) X(hardshrink) X(softshrink) X(abs)  \
  X(neg) X(square) X(sqrt) X(rsqrt) X(reciprocal) X(sign) X(floor) X(ceil) X(round) X(trunc)      \
  X(hardsigmoid) X(hardswish) X(sigmoid) X(silu) X(tanh) X(gelu_erf) X(gelu_tanh) X(mish)         \
  X(softplus) X(log_sigmoid) X(exp) X(expm1) X(log) X(log1p) X(log2) X(log10) X(erf) X(sin)       \
  X(cos) X(tan) X(sinh) X(cosh) X(asin) X(acos) X(atan) X(asinh) X(acosh) X(atanh)

#define TD_PAIRS(X) X(add) X(sub) X(mul) X(div) X(maximum) X(minimum) X(pow)

#define TD_ENUMERATOR(name) name,
#define TD_NAME(name) " " #name

enum class Code : int { TD_OPERATIONS(TD_ENUMERATOR) count_ };
enum class Fn : int { TD_FUNCTIONS(TD_ENUMERATOR) };
enum class Fn2 : int { TD_PAIRS(TD_ENUMERATOR) };

}  // namespace td
