#include "masks.h"

#include <algorithm>
#include <cstring>

namespace td {

bool any_bit(const uint64_t* row, int words) {
  uint64_t any = 0;
  for (int i = 0; i < words; ++i) any |= row[i];
  return any != 0;
}

void fill_row(uint64_t* row, int w) {
  const int words = words_of(w);
  for (int i = 0; i < words; ++i) row[i] = ~uint64_t(0);
  if (words) row[words - 1] &= tail_mask(w);
}

void set_bits(uint64_t* row, int begin, int end) {
  for (int x = begin; x < end;) {
    const int stop = std::min(end, (x / 64 + 1) * 64);
    row[x / 64] |= tail_mask(stop - x) << (x % 64);
    x = stop;
  }
}

void mark_outside(const Rect& rect, int y, int w, uint64_t* row) {
  if (!rect.has_row(y)) return fill_row(row, w);
  set_bits(row, 0, std::min(rect.x, w));
  set_bits(row, rect.x + rect.w, w);
}

void keep_valid(const td_slot& slot, int y, int w, uint64_t* row, uint64_t* rows) {
  if (!slot.valid) return;
  pack_row(slot.valid + size_t(y) * w, w, rows);
  for (int k = 0; k < words_of(w); ++k) row[k] &= rows[k];
}

int count_bits(const uint64_t* row, int begin, int end) {
  int count = 0;
  for (int x = begin; x < end;) {
    const int stop = std::min(end, (x / 64 + 1) * 64);
    count += __builtin_popcountll(row[x / 64] >> (x % 64) & tail_mask(stop - x));
    x = stop;
  }
  return count;
}

void dilate_row(const uint64_t* mask, int y, int h, int w, uint64_t* out, uint64_t* rows) {
  const int words = words_of(w);
  std::fill_n(rows, words, 0);
  for (int i = std::max(0, y - 1); i <= std::min(h - 1, y + 1); ++i)
    for (int k = 0; k < words; ++k) rows[k] |= mask[size_t(i) * words + k];
  for (int k = 0; k < words; ++k) {
    const uint64_t left = k ? rows[k - 1] >> 63 : 0, right = k + 1 < words ? rows[k + 1] << 63 : 0;
    out[k] = rows[k] | rows[k] << 1 | left | rows[k] >> 1 | right;
  }
  out[words - 1] &= tail_mask(w);
}

namespace {

// Calls mark(x) for the hot cells of one row of cells.
template <class Mark>
void for_hot(const Cells& cells, int line, Mark mark) {
  const int top = std::max(0, line - 1), bottom = std::min(cells.down - 1, line + 1);
  const auto column = [&](int x) {
    float sum = 0;
    for (int i = top; i <= bottom; ++i) sum += cells.at[size_t(i) * cells.across + x].excess;
    return sum;
  };
  float left = 0, here = column(0);
  for (int x = 0; x < cells.across; ++x) {
    const float right = x + 1 < cells.across ? column(x + 1) : 0;
    const Cell& own = cells.at[size_t(line) * cells.across + x];
    // written this way round, NaN is hot
    if (own.fine || (own.known && !(left + here + right <= 0))) mark(x);
    left = here;
    here = right;
  }
}

}  // namespace

void mark_cells(const Cells& cells, int y, int w, uint64_t* row) {
  const int line = y / cells.grain;
  std::fill_n(row, words_of(w), 0);
  for (int i = std::max(0, line - 1); i <= std::min(cells.down - 1, line + 1); ++i)
    for_hot(cells, i, [&](int x) {
      set_bits(row, std::max(0, (x - 1) * cells.grain), std::min(w, (x + 2) * cells.grain));
    });
}

namespace {

// ORs `in` into `out`, moved by `shift` places to higher x (lower where negative).
void or_shifted(const uint64_t* in, int in_words, uint64_t* out, int out_words, int shift) {
  const int whole = shift >= 0 ? shift / 64 : -((-shift + 63) / 64);
  const int part = shift - whole * 64;
  for (int o = std::max(0, whole); o < out_words; ++o) {
    const int i = o - whole;
    uint64_t bits = i < in_words ? in[i] << part : 0;
    if (part && i >= 1 && i - 1 < in_words) bits |= in[i - 1] >> (64 - part);
    if (i > in_words) break;
    out[o] |= bits;
  }
}

// Bits 0, 2, 4 ... as bits 0, 1, 2 ...
uint64_t even_bits(uint64_t x) {
  x &= 0x5555555555555555;
  x = (x | x >> 1) & 0x3333333333333333;
  x = (x | x >> 2) & 0x0f0f0f0f0f0f0f0f;
  x = (x | x >> 4) & 0x00ff00ff00ff00ff;
  x = (x | x >> 8) & 0x0000ffff0000ffff;
  return (x | x >> 16) & 0x00000000ffffffff;
}

}  // namespace

void spread_row(const Axis& axis, const uint64_t* in, uint64_t* out) {
  const int in_words = words_of(axis.n_in), out_words = words_of(axis.n_out);
  if (axis.window && axis.stride == 1) {
    // out[x] reads in[x - pad + t * dilation]: in moves up by pad - t * dilation
    for (int t = 0; t < axis.kernel; ++t)
      or_shifted(in, in_words, out, out_words, axis.pad - t * axis.dilation);
    out[out_words - 1] &= tail_mask(axis.n_out);
    return;
  }
  if (axis.window && axis.stride == 2) {
    // the same with the places 2 x, of which there are some words more than outputs
    constexpr int kMost = 64;
    uint64_t places[2 * kMost];
    for (int from = 0; from < out_words; from += kMost) {
      const int count = std::min(kMost, out_words - from);
      std::fill_n(places, 2 * count, 0);
      for (int t = 0; t < axis.kernel; ++t)
        or_shifted(in, in_words, places, 2 * count, axis.pad - t * axis.dilation - 128 * from);
      for (int k = 0; k < count; ++k)
        out[from + k] |= even_bits(places[2 * k]) | even_bits(places[2 * k + 1]) << 32;
    }
    out[out_words - 1] &= tail_mask(axis.n_out);
    return;
  }
  for (int word = 0; word < in_words; ++word) {
    for (uint64_t bits = in[word]; bits; bits &= bits - 1) {
      const int i = word * 64 + __builtin_ctzll(bits);
      for (int32_t n = axis.first[i]; n < axis.first[i + 1]; ++n)
        out[axis.outs[n] / 64] |= uint64_t(1) << (axis.outs[n] % 64);
    }
  }
}

bool gather_rows(const Axis& axis, const uint64_t* changed, int words, int y, uint64_t* out) {
  uint64_t any = 0;
  for (int t = 0; t < axis.n_taps; ++t) {
    const int i = axis.window ? y * axis.stride - axis.pad + t * axis.dilation
                              : axis.taps[static_cast<size_t>(y) * axis.n_taps + t];
    if (i < 0 || i >= axis.n_in) continue;
    const uint64_t* row = changed + static_cast<size_t>(i) * words;
    for (int w = 0; w < words; ++w) {
      out[w] |= row[w];
      any |= row[w];
    }
  }
  return any != 0;
}

size_t list_row(const uint64_t* row, int words, int y, int slot, Pixel* out) {
  size_t count = 0;
  for_runs(row, words, [&](int begin, int end) {
    for (int x = begin; x < end; ++x)
      out[count++] = {uint16_t(y), uint16_t(x), uint16_t(slot), uint16_t(end - x)};
  });
  return count;
}

size_t list_tiles(const uint64_t* row, const uint64_t* below, int words, int y, int slot,
                  Pixel* out) {
  constexpr uint64_t kFirst = 0x5555555555555555;
  size_t count = 0;
  for (int k = 0; k < words; ++k) {
    const uint64_t any = row[k] | below[k];
    for (uint64_t tiles = (any | any >> 1) & kFirst; tiles; tiles &= tiles - 1) {
      const int x = __builtin_ctzll(tiles);
      const unsigned bits = unsigned(row[k] >> x & 3) | unsigned(below[k] >> x & 3) << 2;
      out[count++] = {uint16_t(y), uint16_t(k * 64 + x), uint16_t(slot), uint16_t(bits)};
    }
  }
  return count;
}

void unpack(const uint64_t* mask, int h, int w, uint8_t* out) {
  // eight bits to eight bytes: a copy of the bits in each byte, one of them kept, moved to the bottom
  constexpr uint64_t kCopies = 0x0101010101010101, kOwn = 0x8040201008040201,
                     kLow = 0x7f * kCopies;
  const int words = words_of(w);
  for (int y = 0; y < h; ++y, mask += words, out += w) {
    int x = 0;
    for (; x + 8 <= w; x += 8) {
      const uint64_t own = (mask[x / 64] >> (x % 64) & 0xff) * kCopies & kOwn;
      // a byte is 0 or one bit: adding 0x7f carries that bit into the top one
      const uint64_t bytes = (((own & kLow) + kLow) | own) >> 7 & kCopies;
      std::memcpy(out + x, &bytes, 8);
    }
    for (; x < w; ++x) out[x] = uint8_t(mask[x / 64] >> (x % 64) & 1);
  }
}

void pack_row(const uint8_t* bytes, int w, uint64_t* out) {
  std::fill_n(out, words_of(w), 0);
  int x = 0;
  for (; x + 8 <= w; x += 8) {
    uint64_t eight;
    std::memcpy(&eight, bytes + x, 8);
    // moves the lowest bit of each byte to its place in the top byte
    out[x / 64] |= (eight & 0x0101010101010101) * 0x0102040810204080 >> 56 << (x % 64);
  }
  for (; x < w; ++x) out[x / 64] |= uint64_t(bytes[x] != 0) << (x % 64);
}

}  // namespace td
