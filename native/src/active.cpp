#include "active.h"

#include <algorithm>

#include "masks.h"

namespace td {

bool ActiveSets::wanted(int step, int slot) const {
  const td_slot& s = call_.slots[slot];
  if (s.whole || s.moved || forced(step, slot)) return true;
  for (int value : program_.steps[step].inputs)
    for (int owner : program_.values[value].owners)
      if (space_.any_at(owner, slot)) return true;
  return false;
}

void ActiveSets::find_row(int step, int slot, int y, uint64_t* out, uint64_t* rows) const {
  const Value& v = program_.values[program_.steps[step].output];
  std::fill_n(out, words_of(v.w), 0);
  if (call_.slots[slot].whole) {
    fill_row(out, v.w);
    return;
  }
  reached_row(step, slot, y, out, rows);
  if (call_.slots[slot].moved) moved_row(step, slot, y, out, rows);
  // the step's own set was found all the same: that work is part of a frame
  if (const uint8_t* set = forced(step, slot)) pack_row(set + size_t(y) * v.w, v.w, out);
}

// Adds the pixels that the changes of the inputs reach.
void ActiveSets::reached_row(int i, int s, int y, uint64_t* out, uint64_t* rows) const {
  const Step& step = program_.steps[i];
  const Value& v = program_.values[step.output];
  const int words = words_of(v.w);
  for (size_t n = 0; n < step.inputs.size(); ++n) {
    const Footprint& f = step.footprints[n];
    const Value& in = program_.values[step.inputs[n]];
    const int in_words = words_of(in.w);
    bool gathered = false;
    for (int owner : in.owners) {
      if (!space_.any_at(owner, s)) continue;
      const uint64_t* mask = space_.changed(owner, s);
      if (f.kind == Footprint::everything) {
        fill_row(out, v.w);
      } else if (f.kind == Footprint::identity) {
        for (int k = 0; k < words; ++k) out[k] |= mask[size_t(y) * words + k];
      } else {
        if (!gathered) std::fill_n(rows, in_words, 0);
        gathered |= gather_rows(f.rows, mask, in_words, y, rows);
      }
    }
    if (gathered) spread_row(f.cols, rows, out);
  }
}

// Adds what the window has not seen, and what another edge has cut off.
void ActiveSets::moved_row(int i, int s, int y, uint64_t* out, uint64_t* rows) const {
  const td_slot& slot = call_.slots[s];
  const int output = program_.steps[i].output;
  const Value& v = program_.values[output];
  mark_outside(seen(program_, slot, output), y, v.w, out);
  if (!slot.border) return;
  const uint8_t* const border = slot.border + engine_.step_lines[i];
  if (border[y]) {
    fill_row(out, v.w);
    return;
  }
  pack_row(border + v.h, v.w, rows);
  for (int k = 0; k < words_of(v.w); ++k) out[k] |= rows[k];
}

}  // namespace td
