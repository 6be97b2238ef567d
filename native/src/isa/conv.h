// Convolution and transposed convolution at the active pixels, without im2col.
//
// Long sums: blocks of pixels share each chunk of weights while it is in a near cache; partial sums
// wait in `sums`. Short sums: a block of pixels is computed and completed in registers. Every output is
// one chain of multiply-adds over (tap, channel) in ascending order, so it does not depend on how
// pixels were put together.
#pragma once

#include <algorithm>

#include "../kernels.h"
#include "finish.h"
#include "multiply.h"
#include "pack.h"
#include "simd.h"

namespace td {
namespace TD_ISA {

// A chunk as a register block multiplies it.
template <class T>
struct Whole {
  Rows<T> rows;
  const typename Multiply<T>::Weight* weights;
  int k0, k1;
};

// One task: a block of pixels, one gate group.
template <class T>
class ConvTask {
 public:
  ConvTask(const Job& job, size_t begin, size_t end, Scratch& scratch)
      : job_(job), p_(static_cast<const PackedConv<T>&>(*job.packed)),
        in_(job.program->values[job.step->inputs[0]]), pixels_(job.pixels + begin),
        count_(int(end - begin)), single_(p_.phases.size() == 1) {
    for (const Phase& phase : p_.phases) most_taps_ = std::max(most_taps_, int(phase.taps.size()));
    const size_t sums = sizeof(float) * count_ * kRow;
    const size_t rows = sizeof(T*) * size_t(most_taps_ + 1) * (count_ + kMostPixels);
    unsigned char* bytes = static_cast<unsigned char*>(
        scratch.get(sums + rows + 128));
    sums_ = reinterpret_cast<float*>(bytes);
    rows_ = reinterpret_cast<const T**>(bytes + (sums + 63) / 64 * 64);
  }

  // Channel groups first .. last.
  void run(int first, int last) {
    Finisher<T> finish(job_);
    for (size_t i = 0; i < p_.phases.size(); ++i) {
      choose(p_.phases[i]);
      if (!chosen_) continue;
      for (int b = 0; b < blocks_; ++b) {
        find_rows(p_.phases[i], b);
        if (!p_.by_group) find_targets(b, finish);
        if (b == 0) fetch_block(int(i), 0, first, p_.weights_near ? last : first, true, finish);
      }
      if (p_.by_group) {
        for (int group = first; group <= last; ++group) run_long(int(i), group, finish);
      } else if (p_.weights_near) {
        for (int b = 0; b < blocks_; ++b) {
          if (b + 1 < blocks_) fetch_block(int(i), b + 1, first, last, true, finish);
          for (int group = first; group <= last; ++group) run_short(int(i), group, b, finish);
        }
      } else {
        for (int group = first; group <= last; ++group) {
          for (int b = 0; b < blocks_; ++b) {
            if (b + 1 < blocks_)
              fetch_block(int(i), b + 1, group, group, group == first, finish);
            else if (group < last)
              fetch_block(int(i), 0, group + 1, group + 1, false, finish);
            run_short(int(i), group, b, finish);
          }
        }
      }
    }
  }

 private:
  // Picks the task's pixels of one phase and cuts them into register blocks of nearly equal size.
  void choose(const Phase& phase) {
    chosen_ = 0;
    if (single_) {
      for (; chosen_ < count_; ++chosen_) order_[chosen_] = uint16_t(chosen_);
    } else {
      for (int i = 0; i < count_; ++i)
        if (pixels_[i].y % p_.phases_y == phase.ry && pixels_[i].x % p_.phases_x == phase.rx)
          order_[chosen_++] = uint16_t(i);
    }
    blocks_ = (chosen_ + p_.pixels - 1) / p_.pixels;
    for (int b = 0; b <= blocks_; ++b) begin_[b] = uint16_t(chosen_ * b / std::max(1, blocks_));
  }

  // Long sums: each chunk of a group's weights serves all blocks before the next one comes, and the
  // pixels are completed at the end, when what is stored has arrived.
  void run_long(int index, int group, Finisher<T>& finish) {
    const Phase& phase = p_.phases[index];
    const std::vector<Panel>& panels = p_.panels[group];
    const int c0 = panels.front().c0, channels = panels.back().c0 + panels.back().n - c0;
    for (const Panel& panel : panels) {
      if (phase.chunks.empty()) only_bias(panel, c0, 0, chosen_);
      for (size_t c = 0; c < phase.chunks.size(); ++c) {
        for (int b = 0; b < blocks_; ++b) {
          if (c == 0 && panel.c0 == c0) finish_later(b, c0, channels, finish);
          if (b + 1 < blocks_)
            fetch_inputs(phase, panel, phase.chunks[c], b + 1);
          else if (c + 1 < phase.chunks.size())
            fetch_inputs(phase, panel, phase.chunks[c + 1], 0);
          run_chunk(index, panel, c, b, sums_ + size_t(begin_[b]) * kRow + panel.c0 - c0);
        }
      }
    }
    for (int k = 0; k < chosen_; ++k)
      finish(pixels_[order_[k]], c0, channels, sums_ + size_t(k) * kRow);
  }

  // Short sums: a block is completed while its sums are in the first cache; what it reads has been
  // asked for one block before.
  void run_short(int index, int group, int block, Finisher<T>& finish) {
    const Phase& phase = p_.phases[index];
    const std::vector<Panel>& panels = p_.panels[group];
    const int c0 = panels.front().c0, channels = panels.back().c0 + panels.back().n - c0;
    const int m = begin_[block + 1] - begin_[block];
    if (direct_[block] && panels.size() == 1 && phase.chunks.size() == 1) {
      run_direct(index, panels.front(), block, finish);
      return;
    }
    for (const Panel& panel : panels) {
      if (phase.chunks.empty()) only_bias(panel, c0, 0, m);
      for (size_t c = 0; c < phase.chunks.size(); ++c)
        run_chunk(index, panel, c, block, sums_ + panel.c0 - c0);
    }
    for (int k = 0; k < m; ++k)
      finish(pixels_[order_[begin_[block] + k]], c0, channels, sums_ + k * kRow);
  }

  // Finds where a block's pixels are stored, if they can be completed from the registers.
  void find_targets(int block, Finisher<T>& finish) {
    const Pixel* const first = pixels_ + order_[begin_[block]];
    const int m = begin_[block + 1] - begin_[block];
    direct_[block] = single_ && finish.simple() && first->slot == first[m - 1].slot;
    gated_[block] = 0;
    for (int i = 0; i < m; ++i) {
      bool gated;
      finish.place(pixels_[order_[begin_[block] + i]], stored_ + begin_[block] + i,
                   others_ + begin_[block] + i, &gated);
      gated_[block] = uint16_t(gated_[block] | gated << i);
    }
  }

  // One group of a block from its inputs to its state.
  void run_direct(int index, const Panel& panel, int block, Finisher<T>& finish) {
    const int begin = begin_[block], m = begin_[block + 1] - begin;
    const Whole<T> whole = whole_of(index, panel, 0, block);
    const Targets<T> to{stored_ + begin, finish.adds() ? others_ + begin : nullptr, panel.c0,
                        panel.n - (panel.nv - 1) * kWidth, gated_[block]};
    uint32_t published = register_block<T>(panel.nv, m).complete(
        whole.rows, whole.k0, whole.k1, whole.weights, p_.bias.data() + panel.bias,
        finish.rule(pixels_[begin]), to);
    for (; published; published &= published - 1)
      finish.mark(pixels_[begin + __builtin_ctz(published)]);
  }

  // Nothing reaches these outputs but the bias.
  void only_bias(const Panel& panel, int c0, int begin, int end) {
    for (int i = begin; i < end; ++i)
      std::memcpy(sums_ + size_t(i) * kRow + panel.c0 - c0, p_.bias.data() + panel.bias,
                  sizeof(float) * panel.n);
  }

  // Asks for what completing a block's pixels will read.
  void finish_later(int block, int c0, int channels, Finisher<T>& finish) {
    for (int i = begin_[block]; i < begin_[block + 1]; ++i) {
      if (p_.by_group) {
        finish.prefetch(pixels_[order_[i]], c0, channels);
        continue;
      }
      fetch(stored_[i] + c0, channels);
      if (finish.adds()) fetch(others_[i] + c0, channels);
    }
  }

  // Asks for all that a block of short sums reads.
  void fetch_block(int index, int block, int first, int last, bool inputs, Finisher<T>& finish) {
    const Phase& phase = p_.phases[index];
    const int c0 = p_.panels[first].front().c0;
    const Panel& end = p_.panels[last].back();
    if (inputs)
      for (const Chunk& chunk : phase.chunks)
        fetch_inputs(phase, p_.panels[first].front(), chunk, block);
    finish_later(block, c0, end.c0 + end.n - c0, finish);
  }

  // Asks for the inputs that a chunk is multiplied with.
  void fetch_inputs(const Phase& phase, const Panel& panel, const Chunk& chunk, int block) {
    const T* const* const rows = rows_of(block);
    const Segment& segment = phase.segments[chunk.segment];
    const int m = begin_[block + 1] - begin_[block];
    if (!block_inside(block)) return;
    for (int s = 0; s < chunk.n_segments; ++s) {
      const T* const* const first = rows + (segment.tap + s * segment.n_taps) * p_.pixels;
      for (int i = 0; i < m; ++i)
        fetch(first[i] + panel.input_c0 + chunk.k0, chunk.k1 - chunk.k0);
    }
  }

  // The part of the next chunk that a block asks for; the blocks share it. Behind a panel's weights
  // lie the next one's.
  Ahead next_weights(const Chunk& chunk, const Panel& panel, int index, int block) const {
    const size_t steps = chunk_steps(chunk);
    const char* next = reinterpret_cast<const char*>(
        p_.weights + panel.weights[index] + (chunk.weights + steps) * panel.nv * kWidth);
    const int each = (panel.nv + blocks_ - 1) / blocks_;
    const int lines = std::clamp(panel.nv - block * each, 0, each);
    return {std::min(next + size_t(block) * each * steps * 64, p_.end() - steps * lines * 64), lines};
  }

  size_t chunk_steps(const Chunk& chunk) const {
    constexpr int unit = Multiply<T>::kStep;
    return size_t(chunk.k1 - chunk.k0 + unit - 1) / unit * chunk.n_segments;
  }

  // Input pixel that a pixel's taps are counted from.
  TD_INLINE Tap origin(const Pixel& p) const {
    if (single_) return {p.y * p_.stride_y, p.x * p_.stride_x};
    return {p.y / p_.phases_y * p_.stride_y, p.x / p_.phases_x * p_.stride_x};
  }

  const T** rows_of(int block) { return rows_ + size_t(block) * (most_taps_ * p_.pixels + 1); }

  void enter(int slot) {
    if (slot == slot_) return;
    slot_ = slot;
    ring_ = job_.ring<const T>(job_.step->inputs[0], slot);
    seam_x_ = p_.whole_rows ? ring_.seam_x : in_.w;
  }

  // Finds where each pixel's taps lie. Inside the map of one slot only a segment's first is wanted:
  // the others follow it, unless the ring's seam lies between them.
  void find_rows(const Phase& phase, int block) {
    const T** rows = rows_of(block);
    const uint16_t* const order = order_ + begin_[block];
    const int m = begin_[block + 1] - begin_[block];
    const Tap& first = phase.taps.empty() ? kNone : phase.taps.front();
    const Tap& last = phase.taps.empty() ? kNone : phase.taps.back();
    enter(pixels_[order[0]].slot);
    const Ring<const T> ring = ring_;
    // lists are in order of the slots
    bool inside = int(pixels_[order[m - 1]].slot) == slot_;
    for (int i = 0; i < m; ++i) {
      const auto [y, x] = origin(pixels_[order[i]]);
      const int left = x + first.dx, right_end = left < seam_x_ ? seam_x_ : in_.w;
      inside &= y + first.dy >= 0 && y + last.dy < in_.h && left >= 0 && x + last.dx < right_end;
    }
    block_inside(block) = inside;
    for (int i = 0; inside && i < m; ++i) {
      const auto [y, x] = origin(pixels_[order[i]]);
      for (const Segment& s : phase.segments) {
        const Tap& tap = phase.taps[s.tap];
        rows[s.tap * p_.pixels + i] = ring.at(y + tap.dy, x + tap.dx);
      }
    }
    for (int i = 0; !inside && i < m; ++i) {
      const Pixel& p = pixels_[order[i]];
      enter(p.slot);
      const auto [y, x] = origin(p);
      for (size_t t = 0; t < phase.taps.size(); ++t) {
        const int iy = y + phase.taps[t].dy, ix = x + phase.taps[t].dx;
        const bool exists = iy >= 0 && iy < in_.h && ix >= 0 && ix < in_.w;
        rows[t * p_.pixels + i] = exists ? ring_.at(iy, ix) : p_.zeros.data();
      }
    }
  }

  // a flag behind the block's rows
  bool& block_inside(int block) {
    return *reinterpret_cast<bool*>(rows_of(block) + most_taps_ * p_.pixels);
  }

  // The numbers and weights of a chunk; beside an edge or a seam only where it holds whole taps.
  Whole<T> whole_of(int index, const Panel& panel, size_t number, int block) {
    const Phase& phase = p_.phases[index];
    const Chunk& chunk = phase.chunks[number];
    const Segment& segment = phase.segments[chunk.segment];
    const T* const* rows = rows_of(block) + segment.tap * p_.pixels;
    const Ahead ahead = next_weights(chunk, panel, index, block);
    const typename Multiply<T>::Weight* const weights =
        p_.weights + panel.weights[index] + chunk.weights * panel.nv * kWidth;
    // segments of a chunk have as many taps each
    if (block_inside(block))
      return {{rows, segment.n_taps * p_.pixels, chunk.n_segments, panel.input_c0, ahead},
              weights, chunk.k0, chunk.k1};
    // tap by tap
    return {{rows, p_.pixels, segment.n_taps * chunk.n_segments, panel.input_c0, ahead},
            weights, 0, p_.c_in};
  }

  void run_chunk(int index, const Panel& panel, size_t number, int block, float* sums) {
    const Phase& phase = p_.phases[index];
    const Chunk& chunk = phase.chunks[number];
    const int m = begin_[block + 1] - begin_[block];
    const float* bias = number == 0 ? p_.bias.data() + panel.bias : nullptr;
    const Multiplier<T> call = register_block<T>(panel.nv, m).multiply;
    Whole<T> whole = whole_of(index, panel, number, block);
    const int tap_numbers = phase.segments[chunk.segment].n_taps * p_.c_in;
    if (block_inside(block) || (chunk.k0 == 0 && chunk.k1 == tap_numbers)) {
      call(whole.rows, whole.k0, whole.k1, whole.weights, sums, bias);
      return;
    }
    // the chunk holds parts of taps
    constexpr int unit = Multiply<T>::kStep;
    const T* const* const rows = whole.rows.first;
    whole.rows.runs = 1;
    for (int k = chunk.k0; k < chunk.k1;) {
      const int tap = k / p_.c_in, begin = k - tap * p_.c_in;
      const int end = std::min(p_.c_in, begin + chunk.k1 - k);
      whole.rows.first = rows + tap * p_.pixels;
      call(whole.rows, begin, end, whole.weights, sums, bias);
      bias = nullptr;
      const size_t steps = size_t(end - begin + unit - 1) / unit;
      whole.weights += steps * panel.nv * kWidth;
      whole.rows.ahead.at += steps * whole.rows.ahead.lines * 64;
      k += end - begin;
    }
  }

  static constexpr Tap kNone{0, 0};
  const Job& job_;
  const PackedConv<T>& p_;
  const Value& in_;
  const Pixel* pixels_;
  const int count_;
  const bool single_;  // there is one phase
  int most_taps_ = 0, slot_ = -1;
  int chosen_ = 0, blocks_ = 0;
  Ring<const T> ring_;
  int seam_x_ = 0;  // of the ring, where segments may hold several taps
  float* sums_;
  const T** rows_;
  bool direct_[kBlockPx + 1];     // whether a block is completed from the registers
  uint16_t gated_[kBlockPx + 1];  // per block, see Targets
  T* stored_[kBlockPx];           // where the chosen pixels are stored, and their residuals
  const T* others_[kBlockPx];
  uint16_t order_[kBlockPx];        // the chosen pixels
  uint16_t begin_[kBlockPx + 2];    // of the register blocks among them
};

template <class T>
void run_conv(const Job& job, size_t begin, size_t end, int group, Scratch& scratch) {
  const int last = int(static_cast<const PackedConv<T>&>(*job.packed).panels.size()) - 1;
  ConvTask<T>(job, begin, end, scratch).run(group < 0 ? 0 : group, group < 0 ? last : group);
}

}  // namespace TD_ISA
}  // namespace td
