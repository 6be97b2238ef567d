// Runs the histories that tools/native_cases.py wrote (the format stands there) without Python: on
// every instruction set of this CPU, or the one in TORCHDELTA_CPU_ISA.
//
//     native_runner FILE [PART OF A NAME ...]
//
// For each history: states, active sets and change masks are the expected ones; an idle frame activates
// nothing; two threads with a second slot, on buffers whose rings begin elsewhere, give the same bits as
// one thread alone; at threshold 0 the last state is, bit for bit, that of a whole run on the last
// frame, and states in tiles are the expected ones; nothing is written outside the buffers. "warp" names the frames brought into windows. States begin as NaN. Under the address sanitizer nothing may be read
// outside either.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../src/torchdelta_native.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

constexpr int64_t kMagic = 0x3453455341434454;  // "TDCASES4"
constexpr size_t kLine = 64, kGuardBytes = 512;
constexpr unsigned char kPattern = 0xa5, kNan = 0xff;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(bool good, const std::string& what) {
  if (!good) throw Failure(what);
}

// Memory that begins on a cache line, ends at its last byte, and has guard zones around it.
class Guarded {
 public:
  explicit Guarded(size_t bytes = 0, unsigned char fill = 0)
      : memory_(new unsigned char[bytes + 2 * kGuardBytes + kLine]), bytes_(bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.get()) + kGuardBytes;
    data_ = reinterpret_cast<unsigned char*>((begin + kLine - 1) / kLine * kLine);
    std::memset(data_ - kGuardBytes, kPattern, kGuardBytes);
    std::memset(data_ + bytes, kPattern, kGuardBytes);
    std::memset(data_, fill, bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(data_ - kGuardBytes, kGuardBytes);
    __asan_poison_memory_region(data_ + bytes, kGuardBytes);
#endif
  }
  Guarded(const void* from, size_t bytes) : Guarded(bytes) {
    if (bytes) std::memcpy(data_, from, bytes);
  }
  Guarded(Guarded&&) = default;
  Guarded& operator=(Guarded&& other) {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
#if defined(__SANITIZE_ADDRESS__)
  ~Guarded() {
    if (!memory_) return;
    __asan_unpoison_memory_region(data_ - kGuardBytes, kGuardBytes);
    __asan_unpoison_memory_region(data_ + bytes_, kGuardBytes);
  }
#endif
  template <class T>
  T* at() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  bool whole() const {
#if !defined(__SANITIZE_ADDRESS__)
    for (size_t i = 0; i < kGuardBytes; ++i)
      if (data_[-ptrdiff_t(i) - 1] != kPattern || data_[bytes_ + i] != kPattern) return false;
#endif
    return true;
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_;
  size_t bytes_;
};

struct Frame {
  bool whole, idle;
  double input_threshold;
  int64_t input_grain;
  Guarded thresholds, pixels;
  // of a window: where the values' rings begin, and what has moved (see td_slot); without bytes: 0, null
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

class Reader {
 public:
  explicit Reader(const char* path) : in_(path, std::ios::binary) {
    if (!in_) throw std::runtime_error(std::string("cannot read ") + path);
  }
  int64_t word() { return raw<int64_t>(); }
  double number() { return raw<double>(); }
  size_t count() {
    const int64_t n = word();
    if (n < 0) throw std::runtime_error("the file is damaged");
    return size_t(n);
  }
  std::vector<char> bytes() {
    std::vector<char> out(count());
    take(out.data(), out.size());
    char rest[8];
    take(rest, (8 - out.size() % 8) % 8);
    return out;
  }

 private:
  template <class T>
  T raw() {
    T out;
    take(reinterpret_cast<char*>(&out), sizeof out);
    return out;
  }
  void take(char* to, size_t n) {
    if (!in_.read(to, std::streamsize(n))) throw std::runtime_error("the file is cut off");
  }
  std::ifstream in_;
};

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

// One slot: its state, and what a frame reports.
struct Slot {
  // ring: 0, or another number for each place where the buffers' rings may begin
  explicit Slot(const History& h, int ring = 0)
      : origins(h.values.size() * 2 * sizeof(int64_t)), active_px(h.steps * sizeof(int64_t)),
        active(h.active_bytes), changed(h.changed_bytes),
        changed_px(h.reported * sizeof(int64_t)) {
    for (const Buffer& b : h.buffers) {
      buffers.emplace_back(b.elements() * b.item_bytes, kNan);
      addresses.push_back(buffers.back().at<void>());
      const size_t n = rings.size();
      // each of the rows and columns comes to be a seam somewhere
      const size_t y = ring ? (b.h / 2 + ring + n) % b.h : 0;
      const size_t x = ring ? (b.w / 3 + 2 * ring + n) % b.w : 0;
      rings.push_back({y, x});
      corner.push_back({y, x});
    }
  }
  std::vector<Guarded> buffers;
  std::vector<void*> addresses;
  // by buffer: where the ring of a window that never moved begins, and where this frame's does
  std::vector<std::pair<size_t, size_t>> rings, corner;
  Guarded origins, active_px, active, changed, changed_px;

  td_slot frame(const History& h, const Frame& f, bool whole) {
    for (const Guarded* g : {&active_px, &active, &changed, &changed_px})
      std::memset(g->at<void>(), 0, g->bytes());
    td_slot s{};
    s.frame = f.pixels.at<void>();
    s.stride_y = h.stride_y, s.stride_x = h.stride_x, s.stride_c = h.stride_c;
    s.frame_is_float = h.frame_is_float;
    s.whole = whole;
    s.buffers = addresses.data();
    for (size_t v = 0; v < h.values.size(); ++v) {
      const Buffer& b = h.buffers[h.values[v]];
      const int64_t* given = f.origins.bytes() ? f.origins.at<int64_t>() + 2 * v : nullptr;
      const size_t y = rings[h.values[v]].first + (given ? size_t(given[0]) : 0);
      const size_t x = rings[h.values[v]].second + (given ? size_t(given[1]) : 0);
      origins.at<int64_t>()[2 * v] = int64_t(y % b.h);
      origins.at<int64_t>()[2 * v + 1] = int64_t(x % b.w);
      // values side by side share a ring
      corner[h.values[v]] = {y % b.h, x % b.w};
    }
    s.origins = origins.at<int64_t>();
    if (f.moved.bytes() && !whole) s.moved = f.moved.at<int64_t>();
    if (f.border.bytes() && !whole) s.border = f.border.at<uint8_t>();
    if (f.valid.bytes()) s.valid = f.valid.at<uint8_t>();
    s.thresholds = f.thresholds.at<double>();
    s.input_threshold = f.input_threshold;
    s.input_grain = f.input_grain;
    s.active_px = active_px.at<int64_t>();
    s.active = active.at<uint8_t>();
    s.changed = changed.at<uint64_t>();
    s.changed_px = changed_px.at<int64_t>();
    return s;
  }
  bool guarded() const {
    for (const Guarded& b : buffers)
      if (!b.whole()) return false;
    return active_px.whole() && active.whole() && changed.whole() && changed_px.whole();
  }
  size_t marks() const {
    size_t n = 0;
    for (size_t i = 0; i < active_px.bytes() / 8; ++i) n += size_t(active_px.at<int64_t>()[i]);
    for (size_t i = 0; i < changed_px.bytes() / 8; ++i) n += size_t(changed_px.at<int64_t>()[i]);
    for (const Guarded* g : {&active, &changed})
      for (size_t i = 0; i < g->bytes(); ++i) n += g->at<uint8_t>()[i] != 0;
    return n;
  }
  // Number i of a buffer, counted from the window's corner.
  float in_window(const History& h, size_t buffer, size_t i) const {
    const Buffer& b = h.buffers[buffer];
    const size_t y = (i / b.c / b.w + corner[buffer].first) % b.h;
    const size_t x = (i / b.c % b.w + corner[buffer].second) % b.w;
    return number(h, buffer, (y * b.w + x) * b.c + i % b.c);
  }
  float number(const History& h, size_t buffer, size_t i) const {
    if (h.buffers[buffer].item_bytes == 4) return buffers[buffer].at<float>()[i];
    const uint32_t u = uint32_t(buffers[buffer].at<uint16_t>()[i]) << 16;
    float out;
    std::memcpy(&out, &u, 4);
    return out;
  }
};

using Program = std::unique_ptr<td_program, void (*)(td_program*)>;

Program load(const History& h, const std::string& isa) {
  char message[256] = "";
  Program program(td_load(h.program.data(), h.program.size(), isa.c_str(), message, sizeof message),
                  td_free);
  check(program != nullptr, message);
  return program;
}

void step(td_program* program, const History& h, std::vector<td_slot>& slots, int threads,
          bool exact = true) {
  td_call call{};
  call.slots = slots.data();
  call.n_slots = int(slots.size());
  call.threads = threads;
  call.norm_is_max = h.norm_is_max;
  call.exact = exact;
  const int32_t failed = td_step(program, &call);
  check(failed == 0, "td_step returned " + std::to_string(failed));
}

void compare_states(const History& h, const Slot& slot, size_t t) {
  const Frame& f = h.frames[t];
  for (size_t b = 0; b < f.expected.size(); ++b) {
    double off = 0, norm = 0;
    for (size_t i = 0; i < f.expected[b].size(); ++i) {
      const double want = f.expected[b][i], got = slot.number(h, b, i);
      if (std::isnan(want) && std::isnan(got)) continue;
      off += (got - want) * (got - want);
      norm += want * want;
    }
    // written so that NaN fails
    check(off <= h.tolerance * h.tolerance * norm || off == 0,
          "frame " + std::to_string(t) + ", buffer " + std::to_string(b) + " is off by " +
              std::to_string(std::sqrt(off / norm)));
  }
}

void compare_masks(const History& h, const Slot& slot, size_t t) {
  const Frame& f = h.frames[t];
  const std::pair<const char*, std::pair<const std::vector<char>*, const Guarded*>> masks[] = {
      {"active sets", {&f.active, &slot.active}}, {"change masks", {&f.changed, &slot.changed}}};
  for (const auto& [what, both] : masks) {
    const auto& [want, got] = both;
    check(want->empty() || (want->size() == got->bytes() &&
                            !std::memcmp(want->data(), got->at<char>(), want->size())),
          "frame " + std::to_string(t) + ": other " + what);
  }
}

// Equal numbers, or NaN on both sides.
void compare_bits(const History& h, const Slot& a, const Slot& b, const char* what) {
  for (size_t n = 0; n < h.buffers.size(); ++n)
    for (size_t i = 0; i < h.buffers[n].elements(); ++i) {
      const float x = a.in_window(h, n, i), y = b.in_window(h, n, i);
      check(x == y || (std::isnan(x) && std::isnan(y)),
            std::string(what) + ": buffer " + std::to_string(n) + " differs at " +
                std::to_string(i));
    }
}

void run_history(const History& h, const std::string& isa) {
  const Program program = load(h, isa);
  const size_t n = h.frames.size();
  Slot alone(h), first(h, 1), second(h, 4), whole_last(h, 3), whole_first(h, 2), tiled(h);
  for (size_t t = 0; t < n; ++t) {
    const Frame& f = h.frames[t];
    std::vector<td_slot> one{alone.frame(h, f, f.whole)};
    step(program.get(), h, one, 1);
    check(alone.guarded(), "wrote outside a buffer");
    compare_states(h, alone, t);
    compare_masks(h, alone, t);
    // rounding may publish more at threshold 0, and moves what is just at another one
    std::vector<td_slot> tiles{tiled.frame(h, f, f.whole)};
    step(program.get(), h, tiles, 2, false);
    check(tiled.guarded(), "wrote outside a buffer, in tiles");
    if (h.exact) compare_states(h, tiled, t);
    check(!f.idle || alone.marks() == 0, "frame " + std::to_string(t) + " is idle, and is not");
    // the second slot runs the frames the other way; a window's moves cannot be turned round
    const Frame& back = h.moves ? f : h.frames[n - 1 - t];
    std::vector<td_slot> two{first.frame(h, f, f.whole), second.frame(h, back, t == 0)};
    step(program.get(), h, two, 2);
    check(first.guarded() && second.guarded(), "wrote outside a buffer, two threads");
    compare_bits(h, alone, first, "two threads");
  }
  if (!h.exact) return;
  std::vector<td_slot> last{whole_last.frame(h, h.frames[n - 1], true)};
  step(program.get(), h, last, 2);
  compare_bits(h, alone, whole_last, "whole run on the last frame");
  std::vector<td_slot> begin{whole_first.frame(h, h.frames[h.moves ? n - 1 : 0], true)};
  step(program.get(), h, begin, 1);
  compare_bits(h, second, whole_first, "second slot, whole run on its last frame");
}

// A pixel of the frame, bilinear, in double precision: kept inside it.
double sample(const unsigned char* frame, int h, int w, double y, double x, int c) {
  y = std::min(std::max(y, 0.0), h - 1.0), x = std::min(std::max(x, 0.0), w - 1.0);
  const int y0 = std::min(int(y), h - 2), x0 = std::min(int(x), w - 2);
  const auto at = [&](int i, int k) { return double(frame[(i * w + k) * 3 + c]); };
  const double above = at(y0, x0) + (x - x0) * (at(y0, x0 + 1) - at(y0, x0));
  const double below = at(y0 + 1, x0) + (x - x0) * (at(y0 + 1, x0 + 1) - at(y0 + 1, x0));
  return above + (y - y0) * (below - above);
}

// Frames of noise brought into windows: every pixel against its definition, two threads against one.
void run_warp(int h, int w, const double* to_frame, const std::string& isa) {
  const int out_h = h + 9, out_w = w + 14;
  Guarded frame(size_t(h) * w * 3), out(size_t(out_h) * out_w * 3, kPattern);
  Guarded again(out.bytes(), 0), mask(size_t(out_h) * out_w, kPattern);
  uint32_t random = 1;
  for (size_t i = 0; i < frame.bytes(); ++i)
    frame.at<uint8_t>()[i] = (random = random * 1664525 + 1013904223) >> 24;
  td_warp_call call{frame.at<uint8_t>(), w * 3, h, w, out.at<uint8_t>(), mask.at<uint8_t>(),
                    out_h, out_w, to_frame, 1e-6, 1};
  check(td_warp(isa.c_str(), &call) == 0, "warp refused");
  call.out = again.at<uint8_t>(), call.threads = 2;
  check(td_warp(isa.c_str(), &call) == 0, "warp refused, two threads");
  check(out.whole() && again.whole() && mask.whole() && frame.whole(), "warp wrote outside a buffer");
  check(std::memcmp(out.at<void>(), again.at<void>(), out.bytes()) == 0, "warp on two threads");
  for (int y = 0; y < out_h; ++y)
    for (int x = 0; x < out_w; ++x) {
      const double* const m = to_frame;
      const double depth = m[6] * x + m[7] * y + m[8];
      const double fx = (m[0] * x + m[1] * y + m[2]) / depth, fy = (m[3] * x + m[4] * y + m[5]) / depth;
      const double edge = std::min({fx, w - 1 - fx, fy, h - 1 - fy});
      const size_t at = size_t(y) * out_w + x;
      const bool inside = mask.at<uint8_t>()[at];
      // within rounding of the edge either is right
      if (depth > 0 && std::abs(edge) > 1e-4)
        check(inside == (edge > 0), "warp's mask at " + std::to_string(y) + ", " + std::to_string(x));
      for (int c = 0; c < 3; ++c) {
        const double found = out.at<uint8_t>()[at * 3 + c];
        const double expected = inside ? sample(frame.at<uint8_t>(), h, w, fy, fx, c) : 0;
        check(std::abs(found - expected) < 0.55,
              "warp at " + std::to_string(y) + ", " + std::to_string(x) + ": " +
                  std::to_string(found) + " instead of " + std::to_string(expected));
      }
    }
}

size_t run_warps(const std::string& isa) {
  const double maps[][9] = {{1, 0, -5, 0, 1, -3, 0, 0, 1},          {1, 0, -4.7, 0, 1, -3.6, 0, 0, 1},
                            {1.1, 0.02, -6, -0.01, 0.93, -2, 0, 0, 1}, {0, 1, -3, 1, 0, -4, 0, 0, 1},
                            {-1, 0, 50, 0, -1, 40, 0, 0, 1},        {0.4, 0, 3, 0, 0.4, 1, 0, 0, 1},
                            {1, 0.1, -6, -0.1, 1, 2, 4e-4, -3e-4, 1}};
  const int sizes[][2] = {{2, 2}, {3, 17}, {7, 5}, {63, 16}, {50, 131}};
  size_t passed = 0;
  for (const auto& map : maps)
    for (const auto& size : sizes) {
      run_warp(size[0], size[1], map, isa);
      ++passed;
    }
  return passed;
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> out;
  for (size_t at = 0; at < names.size();) {
    const size_t end = std::min(names.find(',', at), names.size());
    out.push_back(names.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

bool wanted(const std::string& name, int argc, char** argv) {
  bool any = argc <= 2;
  for (int i = 2; i < argc; ++i) any |= name.find(argv[i]) != std::string::npos;
  return any;
}

int run(int argc, char** argv) {
  std::vector<std::string> isas = split(td_isas());
  if (const char* only = std::getenv("TORCHDELTA_CPU_ISA")) isas = {only};
  Reader in(argv[1]);
  if (in.word() != kMagic) throw std::runtime_error("this is no file of tools/native_cases.py");
  const size_t count = in.count();
  size_t passed = 0, failed = 0, warps = 0;
  for (const std::string& isa : isas) {
    if (!wanted("warp", argc, argv)) break;
    try {
      warps += run_warps(isa);
    } catch (const Failure& failure) {
      ++failed;
      std::printf("FAILED %s %s\n", isa.c_str(), failure.what());
    }
  }
  for (size_t i = 0; i < count; ++i) {
    const History h = read_history(in);
    if (!wanted(h.name, argc, argv)) continue;
    for (const std::string& isa : isas) {
      if (h.is_bf16 && isa != "avx512_bf16") continue;
      try {
        run_history(h, isa);
        ++passed;
      } catch (const Failure& failure) {
        ++failed;
        std::printf("FAILED %s %s: %s\n", isa.c_str(), h.name.c_str(), failure.what());
      }
    }
  }
  std::string names;
  for (const std::string& isa : isas) names += " " + isa;
  std::printf("%zu histories and %zu warps passed, %zu failed, on%s\n", passed, warps, failed,
              names.c_str());
  return failed || !(passed + warps) ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FILE [PART OF A NAME ...]\n", argv[0]);
    return 2;
  }
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
