// A frame brought into a window of the world.
#pragma once

#include "kernels.h"

namespace td {

void run_warp(const Kernels& kernels, const td_warp_call& call);

}  // namespace td
