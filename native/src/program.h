// A plan as the native engine reads it.
//
// The byte format is a stream of 8-byte words (int64 or double, little endian) as `blob.py` writes
// it; arrays of float32 or int32 stand as a count and their bytes, filled up to whole words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "names.h"

namespace td {

// channels in a gate's group; `td_names` tells it, and the Python side has the same (plan/ir.py)
constexpr int kGroup = 64;

enum class Element : int { compute = 0, float32 = 1, foreign = 2 };

struct Buffer {
  int h, w, c;
  Element element;
  int item_bytes;
};

struct Value {
  int buffer, offset, h, w, c;
  std::vector<int> owners;
  // index among the reported values, -1: not reported
  int reported = -1;
};

// One axis of a footprint: output o reads taps[o]; `window` axes follow o * stride - pad + t * dilation.
struct Axis {
  bool window;
  int n_in, n_out, kernel, stride, dilation, pad;
  int n_taps;
  std::vector<int32_t> taps;   // [n_out, n_taps], -1: none; only where not `window`
  std::vector<int32_t> outs;   // outputs that read an input, all inputs one behind the other
  std::vector<int32_t> first;  // [n_in + 1], where an input's outputs begin
};

struct Footprint {
  enum Kind : int { identity = 0, everything = 1, separable = 2 } kind;
  Axis rows, cols;
};

// One part of a step's epilogue.
struct Part {
  bool residual;
  int fn;          // `Fn`, of a residual `Fn2`
  float args[4];   // of a pointwise function; alpha of a residual
  int input;       // residual: which of the step's inputs
  bool first;      // residual: it is the left operand
  std::vector<float> slope;  // prelu, one per channel
};

// What an operation is given, in the order that `blob.py` writes and the kernel reads.
struct Params {
  std::vector<int64_t> ints;
  std::vector<float> floats;
  std::vector<std::vector<float>> arrays;
  std::vector<std::vector<int32_t>> indices;
};

struct Step {
  Code code;
  int output;
  std::vector<int> inputs;
  int arity;
  std::vector<Footprint> footprints;
  std::vector<Part> epilogue;
  Params params;
};

struct Input {
  int value, h, w, c;
  bool bgr;                               // the frame's first and third channel are swapped
  std::vector<float> scale_u8, shift_u8;  // normalised = frame * scale + shift, per channel
  std::vector<float> scale_f32, shift_f32;
  std::vector<float> to_full_scale;  // input units to shares of full scale, over C
};

struct Program {
  bool is_bf16;
  Input input;
  std::vector<Buffer> buffers;
  std::vector<Value> values;
  std::vector<Step> steps;
  std::vector<int> reported;
};

Program read_program(const uint8_t* bytes, size_t count);

}  // namespace td
