// All operations but convolutions: each active pixel's channels are computed group by group.
#pragma once

#include "../kernels.h"
#include "finish.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

template <class T>
void run_rows(const Job& job, size_t begin, size_t end, Scratch& scratch) {
  (void)job, (void)begin, (void)end, (void)scratch;
}

}  // namespace TD_ISA
}  // namespace td
