// Frames brought into windows.
#pragma once

#include <cstddef>
#include <string>

namespace td_test {

// Compares warps of frames of noise with their definition; returns how many. Throws: Failure.
size_t run_warps(const std::string& isa);

}  // namespace td_test
