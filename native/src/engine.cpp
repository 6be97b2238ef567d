#include "engine.h"

#include <algorithm>

#include "frame.h"
#include "masks.h"

namespace td {
namespace {

// Bytes of the model's weights, in float32.
size_t raw_weight_bytes(const Program& program) {
  size_t count = 0;
  for (const Step& step : program.steps)
    for (const std::vector<float>& array : step.params.arrays) count += array.size();
  return count * sizeof(float);
}

}  // namespace

Engine::Engine(Program p, const Kernels* k)
    : program(std::move(p)), kernels(k), weights(raw_weight_bytes(program)) {
  mask_words.push_back(0);
  int widest = program.input.w;
  for (const Value& v : program.values) {
    mask_words.push_back(mask_words.back() + size_t(v.h) * words_of(v.w));
    widest = std::max(widest, v.w);
  }
  row_words = words_of(widest) + 1;
  size_t px = 0, lines = 0;
  for (const Step& step : program.steps) {
    const Value& v = program.values[step.output];
    step_px.push_back(px);
    step_lines.push_back(lines);
    px += size_t(v.h) * v.w;
    lines += size_t(v.h) + v.w;
    largest_px = std::max(largest_px, size_t(v.h) * v.w);
    packed.push_back(step.code == Code::foreign ? nullptr : kernels->prepare(program, step, weights));
  }
  tiles.resize(packed.size());
  size_t words = 0;
  for (int value : program.reported) {
    reported_words.push_back(words);
    words += size_t(program.values[value].h) * words_of(program.values[value].w);
  }
  // the packed weights replace these
  for (Step& step : program.steps) {
    if (step.code != Code::conv2d && step.code != Code::conv_transpose2d) continue;
    step.params.arrays.clear();
    step.params.arrays.shrink_to_fit();
  }
}

int32_t Engine::step(const td_call& call) {
  const td_slot* const end = call.slots + call.n_slots;
  if (std::any_of(call.slots, end, [](const td_slot& slot) { return !slot.exact; })) make_tiles();
  std::unique_ptr<Workspace> space = borrow();
  const int32_t result = run_frame(*this, *space, call);
  give_back(std::move(space));
  return result;
}

void Engine::make_tiles() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (has_tiles_) return;
  for (size_t i = 0; i < program.steps.size(); ++i)
    if (!tiles[i]) tiles[i] = kernels->prepare_tiles(program.steps[i], packed[i].get(), weights);
  has_tiles_ = true;
}

std::unique_ptr<Workspace> Engine::borrow() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> space = std::move(free_.back());
  free_.pop_back();
  scratch_bytes_ -= space->bytes();
  return space;
}

void Engine::give_back(std::unique_ptr<Workspace> space) {
  std::lock_guard<std::mutex> lock(mutex_);
  scratch_bytes_ += space->bytes();
  free_.push_back(std::move(space));
}

size_t Engine::weight_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  size_t total = 0;
  for (const auto* all : {&packed, &tiles})
    for (const std::unique_ptr<Packed>& p : *all) total += p ? p->bytes : 0;
  return total;
}

size_t Engine::scratch_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return scratch_bytes_;
}

}  // namespace td
