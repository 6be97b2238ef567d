// One call of td_step.
#pragma once

#include <cstdint>

#include "engine.h"

namespace td {

// Returns 0, or what the foreign function returned.
int32_t run_frame(const Engine& engine, Workspace& space, const td_call& call);

}  // namespace td
