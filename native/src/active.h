// Which output pixels a frame makes active (the design: footprints; windows that move).
#pragma once

#include <cstdint>

#include "engine.h"

namespace td {

class ActiveSets {
 public:
  ActiveSets(const Engine& engine, const Workspace& space, const td_call& call)
      : engine_(engine), program_(engine.program), space_(space), call_(call) {}

  // Whether a step has anything to do for a slot. All threads find the same.
  bool wanted(int step, int slot) const;
  // Finds the active pixels of row y of a step's output; rows: as long as a mask's longest row.
  void find_row(int step, int slot, int y, uint64_t* out, uint64_t* rows) const;
  // The set that replaces a step's own, null: none.
  const uint8_t* forced(int step, int slot) const {
    return call_.slots[slot].forced ? call_.slots[slot].forced[step] : nullptr;
  }

 private:
  void reached_row(int step, int slot, int y, uint64_t* out, uint64_t* rows) const;
  void moved_row(int step, int slot, int y, uint64_t* out, uint64_t* rows) const;

  const Engine& engine_;
  const Program& program_;
  const Workspace& space_;
  const td_call& call_;
};

}  // namespace td
