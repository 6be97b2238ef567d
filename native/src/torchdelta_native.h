// The C interface of the native engine; `engines/cpu/bind.py` and `motion/warp.py` mirror
// it with ctypes.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TD_ABI 8
#define TD_API __attribute__((visibility("default")))

typedef struct td_program td_program;

// Computes one step that has no native kernel, for one slot: gates and publishes it.
//   active:  [Ho * Wo], 1 where a pixel is active
//   changed: [Ho * Wo], to be set to 1 where a pixel was published
// Returns 0, or another number to stop the frame.
typedef int32_t (*td_foreign_fn)(int32_t step, int32_t slot, const uint8_t* active,
                                 uint8_t* changed);

// One slot's part in a frame.
typedef struct {
  const void* frame;  // [H, W, C], read with the strides below
  int64_t stride_y, stride_x, stride_c;  // in elements
  int32_t frame_is_float;                // 0: uint8, 1: float32
  int32_t whole;                         // publish every pixel without comparing
  // 1: a pixel has the same bits whatever lies beside its windows; 0: convolutions may be computed in
  // tiles, where it need not
  int32_t exact;
  void* const* buffers;                  // one address per buffer of the plan: this slot's [H, W, C]
  // [values, 2]: buffers are rings, and pixel (0, 0) of a value's window lies at this pixel (y, x)
  const int64_t* origins;
  // null, or [values, 2]: by how many of its pixels a value's window has moved with this frame; by
  // its whole size where the value does not follow the window
  const int64_t* moved;
  // null, or for each step the rows [Ho] and columns [Wo] of its output, one step behind the other: 1
  // where what it reads was cut off elsewhere before the window moved
  const uint8_t* border;
  const uint8_t* valid;  // null, or [H, W]: 0 where the frame has no content
  const double* thresholds;              // one per value; 0 compares values
  double input_threshold;                // share of full scale
  int64_t input_grain;                   // side of the input gate's cells, pixels; of all slots alike
  // out: one count per step: active pixels, those of which any group was published, and such groups;
  // of a step without a native kernel the foreign function counts the groups
  int64_t *active_px, *published_px, *published_groups;
  uint8_t* active;         // out, or null: active sets of all steps, one behind the other
  // out: change masks of the reported values that changed, one behind the other: of each [H, words],
  // bit x % 64 of word x / 64
  uint64_t* changed;
  int64_t* changed_px;     // out: published pixels of each reported value
  // null, or for each step null or the active set [Ho * Wo] to use instead of its own
  const uint8_t* const* forced;
} td_slot;

typedef struct {
  const td_slot* slots;
  int32_t n_slots;
  int32_t threads;
  int32_t norm_is_max;    // 0: rms, 1: max
  td_foreign_fn foreign;
  double* step_ms;        // out, or null: one per step, all slots together
} td_call;

// A frame brought into a window, bilinear: `motion/warp.py` says what that means.
typedef struct {
  const uint8_t* frame;    // [h, w, 3], at least 2x2; or null: only the mask is wanted
  int64_t stride_y;        // bytes from row to row
  int32_t h, w;
  uint8_t* out;            // out: [out_h, out_w, 3], 0 where the mask is 0
  uint8_t* mask;           // out, or null: [out_h, out_w], 1 where the frame has content
  int32_t out_h, out_w;
  const double* to_frame;  // [3, 3]: the window's pixel centres (x, y, 1) to the frame's
  double rounding_px;      // how far outside the frame a centre may lie
  int32_t threads;
} td_warp_call;

TD_API int32_t td_abi(void);
// Names of the instruction sets that are compiled in and that this CPU has, best first.
TD_API const char* td_isas(void);
// What both sides must agree on, as lines of words: "operations", "functions" and "pairs" with their
// names in the order of the numbers that stand for them in a program; "group": channels of a gate's
// group; "td_slot", "td_call", "td_warp_call": bytes of these structures
TD_API const char* td_names(void);
// Reads a program (see `program.h`) for one of these; null and a message where that fails.
TD_API td_program* td_load(const void* program, uint64_t bytes, const char* isa, char* message,
                    uint64_t message_bytes);
TD_API void td_free(td_program* program);
// Bytes of the packed weights, and of the scratch memory of all calls so far.
TD_API uint64_t td_weight_bytes(const td_program* program);
TD_API uint64_t td_scratch_bytes(const td_program* program);
// Runs one frame; 0, -1 where memory ran out, or what the foreign function returned. Calls may overlap
// in several threads.
TD_API int32_t td_step(td_program* program, const td_call* call);
// Returns 0, -1 where memory ran out, or another number where the CPU has no such instruction set.
TD_API int32_t td_warp(const char* isa, const td_warp_call* call);

#ifdef __cplusplus
}
#endif
