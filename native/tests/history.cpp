#include "history.h"

#include <cstring>
#include <stdexcept>

namespace td_test {
namespace {

constexpr int64_t kMagic = 0x3453455341434454;  // "TDCASES4"

Frame read_frame(Reader& in) {
  Frame f;
  f.whole = in.word() != 0;
  f.idle = in.word() != 0;
  f.input_threshold = in.number();
  f.input_grain = in.word();
  for (Guarded* g : {&f.thresholds, &f.pixels, &f.origins, &f.moved, &f.border, &f.valid}) {
    const std::vector<char> bytes = in.bytes();
    *g = Guarded(bytes.data(), bytes.size());
  }
  const size_t n = in.count();
  for (size_t i = 0; i < n; ++i) {
    const std::vector<char> bytes = in.bytes();
    f.expected.emplace_back(bytes.size() / sizeof(float));
    std::memcpy(f.expected.back().data(), bytes.data(), bytes.size());
  }
  f.active = in.bytes();
  f.changed = in.bytes();
  return f;
}

}  // namespace

Reader::Reader(const char* path) : in_(path, std::ios::binary) {
  if (!in_) throw std::runtime_error(std::string("cannot read ") + path);
  if (word() != kMagic) throw std::runtime_error("this is no file of tools/native_cases.py");
}

size_t Reader::count() {
  const int64_t n = word();
  if (n < 0) throw std::runtime_error("the file is damaged");
  return size_t(n);
}

std::vector<char> Reader::bytes() {
  std::vector<char> out(count());
  take(out.data(), out.size());
  char rest[8];
  take(rest, (8 - out.size() % 8) % 8);
  return out;
}

void Reader::take(char* to, size_t n) {
  if (!in_.read(to, std::streamsize(n))) throw std::runtime_error("the file is cut off");
}

History read_history(Reader& in) {
  History h;
  const std::vector<char> name = in.bytes();
  h.name.assign(name.begin(), name.end());
  h.program = in.bytes();
  h.is_bf16 = in.word() != 0;
  h.norm_is_max = in.word() != 0;
  h.exact = in.word() != 0;
  h.moves = in.word() != 0;
  h.tolerance = in.number();
  h.frame_is_float = in.word() != 0;
  h.stride_y = in.word(), h.stride_x = in.word(), h.stride_c = in.word();
  const size_t n_buffers = in.count();
  for (size_t i = 0; i < n_buffers; ++i) {
    Buffer b;
    b.h = in.count(), b.w = in.count(), b.c = in.count(), b.item_bytes = in.count();
    h.buffers.push_back(b);
  }
  const size_t n_values = in.count();
  for (size_t i = 0; i < n_values; ++i) h.values.push_back(in.count());
  h.steps = in.count(), h.active_bytes = in.count();
  h.reported = in.count(), h.changed_bytes = in.count();
  const size_t n_frames = in.count();
  for (size_t i = 0; i < n_frames; ++i) h.frames.push_back(read_frame(in));
  return h;
}

}  // namespace td_test
