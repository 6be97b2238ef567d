#include "warps.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../src/torchdelta_native.h"
#include "guarded.h"

namespace td_test {
namespace {

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

}  // namespace

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

}  // namespace td_test
