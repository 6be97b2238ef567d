// Runs the histories that tools/native_cases.py wrote (the format stands there) without Python: on
// every instruction set of this CPU, or the one in TORCHDELTA_CPU_ISA.
//
//     native_runner FILE [PART OF A NAME ...]
//
// For each history: states, active sets and change masks are the expected ones; an idle frame
// activates nothing; two threads with a second slot, on buffers whose rings begin elsewhere, give the
// same bits as one thread alone; at threshold 0 the last state is, bit for bit, that of a whole run on
// the last frame, and states in tiles are the expected ones; nothing is written outside the buffers.
// "warp" names the frames brought into windows. States begin as NaN. Under the address sanitizer
// nothing may be read outside either.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../src/torchdelta_native.h"
#include "guarded.h"
#include "history.h"
#include "warps.h"

using namespace td_test;

namespace {

// One slot: its state, and what a frame reports.
struct Slot {
  // ring: 0, or another number for each place where the buffers' rings may begin
  explicit Slot(const History& h, int ring = 0)
      : origins(h.values.size() * 2 * sizeof(int64_t)), active_px(h.steps * sizeof(int64_t)),
        published(2 * h.steps * sizeof(int64_t)), active(h.active_bytes), changed(h.changed_bytes),
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
  Guarded origins, active_px, published, active, changed, changed_px;
  bool exact = true;

  td_slot frame(const History& h, const Frame& f, bool whole) {
    for (const Guarded* g : {&active_px, &published, &active, &changed, &changed_px})
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
    s.exact = exact;
    s.active_px = active_px.at<int64_t>();
    s.published_px = published.at<int64_t>();
    s.published_groups = s.published_px + h.steps;
    s.active = active.at<uint8_t>();
    s.changed = changed.at<uint64_t>();
    s.changed_px = changed_px.at<int64_t>();
    return s;
  }
  bool guarded() const {
    for (const Guarded& b : buffers)
      if (!b.whole()) return false;
    return active_px.whole() && published.whole() && active.whole() && changed.whole() && changed_px.whole();
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

void step(td_program* program, const History& h, std::vector<td_slot>& slots, int threads) {
  td_call call{};
  call.slots = slots.data();
  call.n_slots = int(slots.size());
  call.threads = threads;
  call.norm_is_max = h.norm_is_max;
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
  tiled.exact = false;
  for (size_t t = 0; t < n; ++t) {
    const Frame& f = h.frames[t];
    std::vector<td_slot> one{alone.frame(h, f, f.whole)};
    step(program.get(), h, one, 1);
    check(alone.guarded(), "wrote outside a buffer");
    compare_states(h, alone, t);
    compare_masks(h, alone, t);
    // rounding may publish more at threshold 0, and moves what is just at another one
    std::vector<td_slot> tiles{tiled.frame(h, f, f.whole)};
    step(program.get(), h, tiles, 2);
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
