// Where a value's pixels lie: its buffer is a ring in both directions (design: moving windows).
#pragma once

#include <algorithm>
#include <cstddef>

namespace td {

// Pixel (y, x) of the window lies at ((y + oy) mod h, (x + ox) mod w) of the buffer. Where the origin
// (oy, ox) is 0, no pixel lies behind a seam, and finding one costs what it does in any array.
template <class T>
struct Ring {
  Ring() = default;
  // base: the buffer's first pixel; pitch: numbers from a pixel to the next
  Ring(T* base, int h, int w, int pitch, int oy, int ox)
      : pitch(pitch), line(ptrdiff_t(w) * pitch), turn(h * line),
        corner(base + oy * line + ox * this->pitch), seam_y(h - oy), seam_x(w - ox),
        wraps(oy || ox) {}

  inline T* at(int y, int x) const {
    T* const straight = corner + (y * line + x * pitch);
    if (__builtin_expect(!wraps, 1)) return straight;
    return straight - (y >= seam_y ? turn : 0) - (x >= seam_x ? line : 0);
  }

  // Finds n pixels of column x from row y on, `step` rows apart.
  inline void column(int y, int x, int n, int step, T** out) const {
    T* place = at(y, x);
    const int before = seam_y - y;  // rows in front of the seam, none: y lies behind it
    for (int i = 0; i < n; ++i, place += step * line)
      out[i] = before > 0 && i * step >= before ? place - turn : place;
  }

  // Calls run(begin, end, at) for each stretch of the pixels begin .. end of row y that lie side by
  // side, from `at` on.
  template <class Run>
  inline void stretches(int y, int begin, int end, Run run) const {
    if (begin < seam_x) run(begin, std::min(end, seam_x), at(y, begin));
    if (end > seam_x) run(std::max(begin, seam_x), end, at(y, std::max(begin, seam_x)));
  }

  ptrdiff_t pitch = 0, line = 0, turn = 0;  // numbers of a pixel, of a row, of the buffer
  T* corner = nullptr;                      // the window's first pixel
  int seam_y = 0, seam_x = 0;               // first row and column behind the buffer's end
  bool wraps = false;
};

}  // namespace td
