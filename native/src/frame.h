// One call of td_step.
#pragma once

#include <cstdint>

#include "engine.h"

namespace td {

// what a call returns where memory has run out
constexpr int32_t kNoMemory = -1;

// Returns 0, kNoMemory, or what the foreign function returned.
int32_t run_frame(const Engine& engine, Workspace& space, const td_call& call);

}  // namespace td
