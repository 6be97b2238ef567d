// Histories of frames with the states that are expected, as tools/native_cases.py writes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "guarded.h"

namespace td_test {

struct Frame {
  bool whole, idle;
  double input_threshold;
  int64_t input_grain;
  Guarded thresholds, pixels;
  // of a window: where the values' rings begin, and what has moved (see td_slot); without bytes: 0,
  // null
  Guarded origins, moved, border, valid;
  std::vector<std::vector<float>> expected;  // per buffer; empty: none
  std::vector<char> active, changed;         // expected sets and masks; empty: not compared
};

struct Buffer {
  size_t h, w, c, item_bytes;  // 2: bfloat16, 4: float32
  size_t elements() const { return h * w * c; }
};

struct History {
  std::string name;
  std::vector<char> program;
  bool is_bf16, norm_is_max, exact, moves, frame_is_float;
  double tolerance;
  int64_t stride_y, stride_x, stride_c;
  std::vector<Buffer> buffers;
  std::vector<size_t> values;  // the buffer of each
  size_t steps, active_bytes, reported, changed_bytes;
  std::vector<Frame> frames;
};

// The file: number of histories, then `read_history` for each.
class Reader {
 public:
  explicit Reader(const char* path);
  int64_t word() { return raw<int64_t>(); }
  double number() { return raw<double>(); }
  size_t count();
  std::vector<char> bytes();

 private:
  template <class T>
  T raw() {
    T out;
    take(reinterpret_cast<char*>(&out), sizeof out);
    return out;
  }
  void take(char* to, size_t n);
  std::ifstream in_;
};

History read_history(Reader& in);

}  // namespace td_test
