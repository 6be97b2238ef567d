// The memory of one frame, kept for the next ones.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "program.h"

namespace td {

class Engine;

// Where a thread's part of the list of active pixels lies.
struct List {
  size_t begin, count;
};

// What one call of td_step works in; nothing in it outlives the frame but the memory itself.
class Workspace {
 public:
  // grain: side of the input gate's cells, of all slots
  void prepare(const Program& program, const Engine& engine, int slots, int threads, int grain);
  uint64_t* changed(int value, int slot) const { return addresses_[size_t(value) * slots_ + slot]; }
  uint64_t* const* changed_of(int value) const { return addresses_.data() + size_t(value) * slots_; }
  // whether any pixel of a value was published
  uint8_t& any_at(int value, int slot) { return any_[size_t(value) * slots_ + slot]; }
  const uint8_t& any_at(int value, int slot) const { return any_[size_t(value) * slots_ + slot]; }
  uint64_t* hot(int slot) { return hot_.data() + hot_words_ * slot; }
  Cells cells(int slot) {
    Cells of = cells_;
    if (!cell_.empty()) of.at = cell_.data() + size_t(of.down) * of.across * slot;
    return of;
  }
  // three rows of mask words of one thread
  uint64_t* rows(int thread) { return rows_.data() + size_t(thread) * 3 * row_words; }
  size_t bytes() const;

  std::vector<Scratch> scratch;
  std::vector<List> lists;
  // per step, packing (direct, in tiles) and thread: how many of the thread's tasks have been taken
  std::unique_ptr<std::atomic<int>[]> next;
  // blocks of the input's rows that have been compared and published
  std::atomic<int> next_hot{0}, next_publish{0};
  std::unique_ptr<Pixel[]> pixels;
  size_t row_words = 0;

 private:
  int slots_ = 0, n_values_ = 0;
  size_t next_size_ = 0, masks_size_ = 0, pixels_size_ = 0, hot_words_ = 0;
  std::vector<uint8_t> any_;
  std::vector<uint64_t> rows_, hot_;
  Cells cells_;
  std::vector<Cell> cell_;
  std::unique_ptr<uint64_t[]> masks_;
  std::vector<uint64_t*> addresses_;
};

}  // namespace td
