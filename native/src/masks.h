// Bit masks of pixels: [H, words], bit x % 64 of word x / 64; bits beyond the width are 0.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "program.h"

namespace td {

constexpr int words_of(int w) { return (w + 63) / 64; }

// Bits of the last word that lie inside the map.
constexpr uint64_t tail_mask(int w) { return w % 64 ? (uint64_t(1) << (w % 64)) - 1 : ~uint64_t(0); }

bool any_bit(const uint64_t* row, int words);
void fill_row(uint64_t* row, int w);
void set_bits(uint64_t* row, int begin, int end);
int count_bits(const uint64_t* row, int begin, int end);

// Marks a row's pixels outside a rectangle.
void mark_outside(const Rect& rect, int y, int w, uint64_t* row);

// Unmarks the pixels of row y where a slot's frame has no content; rows: as long as a row.
void keep_valid(const td_slot& slot, int y, int w, uint64_t* row, uint64_t* rows);

// Grows the marked pixels [h, words] by one in all directions, for row y; rows: as long as a row.
void dilate_row(const uint64_t* mask, int y, int h, int w, uint64_t* out, uint64_t* rows);

// Marks the pixels of row y whose cell, or one beside it, is hot (see `ops/gate.py`).
void mark_cells(const Cells& cells, int y, int w, uint64_t* row);

// ORs into `out` (width axis.n_out) the outputs along a row that read a marked input.
void spread_row(const Axis& axis, const uint64_t* in, uint64_t* out);

// ORs into `out` [words] the rows of `changed` [n_in, words] that output row y reads.
bool gather_rows(const Axis& axis, const uint64_t* changed, int words, int y, uint64_t* out);

// Calls run(begin, end) for every run of set bits of a row, from left to right.
template <class Run>
inline void for_runs(const uint64_t* row, int words, Run run) {
  int begin = -1;  // of the run that is open
  for (int word = 0; word < words; ++word) {
    uint64_t bits = row[word];
    const int base = word * 64;
    if (begin >= 0 && !(bits & 1)) {
      run(begin, base);
      begin = -1;
    }
    while (bits) {
      const int from = __builtin_ctzll(bits);
      const uint64_t rest = ~(bits >> from);
      const int length = rest ? __builtin_ctzll(rest) : 64;
      if (begin < 0) begin = base + from;
      if (from + length >= 64) break;
      run(begin, base + from + length);
      begin = -1;
      bits &= ~uint64_t(0) << (from + length);
    }
  }
  if (begin >= 0) run(begin, words * 64);
}

// Appends the pixels of row y to a list and returns how many.
size_t list_row(const uint64_t* row, int words, int y, int slot, Pixel* out);

// Appends the 2x2 tiles of rows y and y + 1 that have a marked pixel; returns how many.
size_t list_tiles(const uint64_t* row, const uint64_t* below, int words, int y, int slot, Pixel* out);

inline int64_t count_bits(const uint64_t* mask, size_t words) {
  int64_t count = 0;
  for (size_t k = 0; k < words; ++k) count += __builtin_popcountll(mask[k]);
  return count;
}

// One byte per pixel, 0 or 1, from bits, and back.
void unpack(const uint64_t* mask, int h, int w, uint8_t* out);
void pack_row(const uint8_t* bytes, int w, uint64_t* out);

}  // namespace td
