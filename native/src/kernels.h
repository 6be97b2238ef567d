// What the engine knows of the kernels: one table per instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "arena.h"
#include "program.h"
#include "ring.h"
#include "torchdelta_native.h"

namespace td {

// One active output pixel. `run` counts the active pixels from here to the right, itself included,
// up to the end of this list's row. In a list of tiles: a tile's first pixel, and in `run` the bits of
// its active ones, row by row.
struct Pixel {
  uint16_t y, x, slot, run;
};

// A rectangle of pixels.
struct Rect {
  int y, x, h, w;
  bool has_row(int py) const { return unsigned(py - y) < unsigned(h); }
  bool has(int py, int px) const { return has_row(py) && unsigned(px - x) < unsigned(w); }
};

// The pixels of a value's window that the slot's last frame had in its window too. The others are
// published without comparing.
inline Rect seen(const Program& program, const td_slot& slot, int value) {
  const Value& v = program.values[value];
  if (slot.whole) return {0, 0, 0, 0};
  if (!slot.moved) return {0, 0, v.h, v.w};
  const int dy = int(slot.moved[2 * value]), dx = int(slot.moved[2 * value + 1]);
  return {std::max(0, -dy), std::max(0, -dx), std::max(0, v.h - std::abs(dy)),
          std::max(0, v.w - std::abs(dx))};
}

// A value's state in one slot.
template <class T>
inline Ring<T> ring_of(const Program& program, const td_slot& slot, int value) {
  const Value& v = program.values[value];
  T* const base = static_cast<T*>(slot.buffers[v.buffer]) + v.offset;
  const int64_t* const origin = slot.origins + 2 * value;
  return {base, v.h, v.w, program.buffers[v.buffer].c, int(origin[0]), int(origin[1])};
}

// pixels of a convolution's task: whole register blocks, and a weight chunk is used often enough
constexpr size_t kBlockPx = 96;

// Weights in the order that a kernel reads them, and whatever else it works out once.
struct Packed {
  virtual ~Packed() = default;
  size_t bytes = 0;
  // a task takes one channel group, not all
  bool by_group = false;
  // side of the tiles in which pixels are listed, and the most that a task takes
  int tile = 1;
  size_t most_px = kBlockPx;
};

// Memory of one thread, kept between frames.
struct Scratch {
  std::vector<unsigned char> bytes;
  // at least n bytes on a cache line; the contents of an earlier call are lost
  void* get(size_t n) {
    if (bytes.size() < n + 64) bytes.resize(n + 64);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t(63));
  }
};

// One step of one frame; all threads share it.
struct Job {
  const Program* program;
  const Step* step;
  const Packed* packed;
  const td_slot* slots;
  const Pixel* pixels;
  // per slot: bit mask [H, words] of the output's published pixels
  uint64_t* const* changed;
  int words;
  // per slot: set to 1 where anything was published
  uint8_t* any;
  // what was compared is published all the same
  bool forced;
  bool norm_is_max;

  template <class T>
  Ring<T> ring(int value, int slot) const {
    return ring_of<T>(*program, slots[slot], value);
  }
  double threshold(int slot) const { return slots[slot].thresholds[step->output]; }
};

// What the input gate knows of a cell.
struct Cell {
  float excess;   // sum of (difference - threshold) over the pixels that can be compared
  int32_t known;  // how many these are
  int32_t fine;   // 1: the 3x3 box of some pixel is far beyond the threshold
};

// FINE of `ops/gate.py`
constexpr float kFineThresholds = 4;

// The cells of the input gate in one slot, from the window's first pixel on; the last ones are cut off.
struct Cells {
  Cell* at = nullptr;
  int grain = 1, down = 0, across = 0;  // side of a cell in pixels; rows and columns of cells
  // the cells of a row of pixels
  Cell* line(int y) const { return at + size_t(y / grain) * across; }
};

// The input gate of one slot, over rows y0 .. y1 of the frame (see `ops/gate.py`).
struct InputJob {
  const Program* program;
  const td_slot* slot;
  Rect seen;
  uint64_t* hot;      // [H, words]; written by find_hot
  uint64_t* changed;  // [H, words]; what publish_input writes to the state
  int words;
  Cells cells;  // written by find_hot where a cell is more than a pixel

  bool by_cell() const { return slot->input_threshold > 0 && cells.grain > 1; }
};

struct Kernels {
  const char* isa;
  // null where the step has nothing to prepare
  std::unique_ptr<Packed> (*prepare)(const Program&, const Step&, Arena&);
  // the same in tiles, from what `prepare` gave; null where the step is not computed so
  std::unique_ptr<Packed> (*prepare_tiles)(const Step&, const Packed*, Arena&);
  // pixels [begin, end) of the list, channel group `group` (-1: all groups)
  void (*run)(const Job&, size_t begin, size_t end, int group, Scratch&);
  void (*find_hot)(const InputJob&, int y0, int y1, Scratch&);
  void (*publish_input)(const InputJob&, int y0, int y1, Scratch&);
  // rows y0 .. y1 of a window, of which the columns between each row's two `spans` show the frame
  void (*warp_rows)(const td_warp_call&, const int32_t* spans, int y0, int y1, Scratch&);
};

// Null where it is not compiled in; `bf16` picks the compute dtype.
const Kernels* kernels_avx512_bf16(bool bf16);
const Kernels* kernels_avx512(bool bf16);
const Kernels* kernels_avx2(bool bf16);
const Kernels* kernels_neon(bool bf16);

}  // namespace td
