#include "workspace.h"

#include "engine.h"
#include "masks.h"

namespace td {

void Workspace::prepare(const Program& program, const Engine& engine, int slots, int threads,
                        int grain) {
  slots_ = slots;
  n_values_ = static_cast<int>(program.values.size());
  if (static_cast<int>(scratch.size()) < threads) scratch.resize(threads);
  lists.assign(threads, {0, 0});
  const size_t counters = 2 * program.steps.size() * threads;
  if (next_size_ < counters) {
    next_size_ = counters;
    next.reset(new std::atomic<int>[next_size_]);
  }
  for (size_t i = 0; i < next_size_; ++i) next[i].store(0, std::memory_order_relaxed);
  next_hot = next_publish = 0;
  any_.assign(size_t(n_values_) * slots, 0);
  row_words = engine.row_words;
  rows_.resize(size_t(threads) * 3 * row_words);
  const size_t mask_words = engine.mask_words.back() * slots;
  if (masks_size_ < mask_words) {
    masks_size_ = mask_words;
    masks_.reset(new uint64_t[mask_words]);
  }
  const size_t hot_words = size_t(program.input.h) * words_of(program.input.w);
  hot_words_ = hot_words;
  if (hot_.size() < hot_words * slots) hot_.resize(hot_words * slots);
  cells_ = {nullptr, grain, (program.input.h + grain - 1) / grain, (program.input.w + grain - 1) / grain};
  const size_t cells = size_t(cells_.down) * cells_.across * slots;
  if (grain > 1 && cell_.size() < cells) cell_.resize(cells);
  const size_t px = engine.largest_px * slots;
  if (pixels_size_ < px) {
    pixels_size_ = px;
    pixels.reset(new Pixel[px]);
  }
  addresses_.resize(size_t(n_values_) * slots);
  for (int v = 0; v < n_values_; ++v)
    for (int s = 0; s < slots; ++s)
      addresses_[size_t(v) * slots + s] =
          masks_.get() + engine.mask_words[v] * slots +
          (engine.mask_words[v + 1] - engine.mask_words[v]) * size_t(s);
}

size_t Workspace::bytes() const {
  size_t total = masks_size_ * 8 + hot_.size() * 8 + rows_.size() * 8 + cell_.size() * sizeof(Cell) +
                 pixels_size_ * sizeof(Pixel) +
                 any_.size() + addresses_.size() * sizeof(void*);
  for (const Scratch& s : scratch) total += s.bytes.size();
  return total;
}

}  // namespace td
