// Depthwise convolution: one input channel per output channel, vectors of channels.
#pragma once

#include "conv.h"

namespace td {
namespace TD_ISA {

inline bool is_depthwise(const Program& program, const Step& step) {
  (void)program, (void)step;
  return false;
}

template <class T>
std::unique_ptr<Packed> prepare_depthwise(const Program& program, const Step& step) {
  return prepare_conv<T>(program, step);
}

template <class T>
void run_depthwise(const Job& job, size_t begin, size_t end, int group, Scratch& scratch) {
  run_conv<T>(job, begin, end, group, scratch);
}

}  // namespace TD_ISA
}  // namespace td
