// A program with its packed weights, and the memory of the frames that run it.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "program.h"
#include "torchdelta_native.h"
#include "workspace.h"

namespace td {

class Engine {
 public:
  Engine(Program program, const Kernels* kernels);
  int32_t step(const td_call& call);
  size_t scratch_bytes() const;
  size_t weight_bytes() const;
  // A step's weights as a slot uses them.
  const Packed* packed_of(int step, bool exact) const {
    return !exact && tiles[step] ? tiles[step].get() : packed[step].get();
  }

  Program program;
  const Kernels* kernels;
  Arena weights;
  std::vector<std::unique_ptr<Packed>> packed;
  // those of steps that compute in tiles where a slot need not be exact; made for the first such slot
  std::vector<std::unique_ptr<Packed>> tiles;
  // where a value's mask begins, words of one slot; where a step's pixels begin, and its rows and
  // columns, likewise; and where the mask of a reported value
  std::vector<size_t> mask_words, step_px, step_lines, reported_words;
  size_t row_words = 0, largest_px = 0;

 private:
  std::unique_ptr<Workspace> borrow();
  void give_back(std::unique_ptr<Workspace> space);
  void make_tiles();

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
  size_t scratch_bytes_ = 0;
  bool has_tiles_ = false;
};

}  // namespace td
