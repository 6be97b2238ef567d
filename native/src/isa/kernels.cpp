// The kernels of one instruction set and compute dtype; compiled once for each.
#include "../kernels.h"

#include "conv.h"
#include "depthwise.h"
#include "input.h"
#include "rows.h"
#include "warp.h"
#include "winograd.h"

#define TD_JOIN_(a, b) a##b
#define TD_JOIN(a, b) TD_JOIN_(a, b)
#define TD_TEXT_(a) #a
#define TD_TEXT(a) TD_TEXT_(a)

namespace td {
namespace TD_ISA {
namespace {

bool is_conv(const Step& step) {
  return step.code == Code::conv2d || step.code == Code::conv_transpose2d;
}

template <class T>
std::unique_ptr<Packed> prepare(const Program& program, const Step& step, Arena& arena) {
  if (!is_conv(step)) return nullptr;
  if (is_depthwise(program, step)) return prepare_depthwise(program, step, arena);
  return prepare_conv<T>(program, step, arena);
}

template <class T>
std::unique_ptr<Packed> prepare_tiles(const Step& step, const Packed* packed, Arena& arena) {
  if constexpr (std::is_same_v<T, float>)
    if (step.code == Code::conv2d && step.params.ints.back())
      return prepare_tiles(static_cast<const PackedConv<float>&>(*packed), arena);
  return nullptr;
}

template <class T>
void run(const Job& job, size_t begin, size_t end, int group, Scratch& scratch) {
  if (!is_conv(*job.step))
    run_rows<T>(job, begin, end, group, scratch);
  else if (job.packed->tile == kTile)
    TilesTask(job, begin, end, scratch).run(group);
  else if (is_depthwise(*job.program, *job.step))
    run_depthwise<T>(job, begin, end);
  else
    run_conv<T>(job, begin, end, group, scratch);
}

template <class T>
constexpr Kernels kTable{TD_TEXT(TD_ISA), prepare<T>,       prepare_tiles<T>, run<T>,
                         find_hot<T>,     publish_input<T>, warp_rows};

}  // namespace
}  // namespace TD_ISA

const Kernels* TD_JOIN(kernels_, TD_ISA)(bool wants_bf16) {
#if defined(TD_AVX512_BF16)
  if (wants_bf16) return &TD_ISA::kTable<TD_ISA::bf16>;
#else
  if (wants_bf16) return nullptr;
#endif
  return &TD_ISA::kTable<float>;
}

}  // namespace td
