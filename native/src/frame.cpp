// Runs a program: for each step the active set, its list of pixels, and the kernel over blocks of it.
#include "frame.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "active.h"
#include "barrier.h"
#include "masks.h"

namespace td {
namespace {

using Clock = std::chrono::steady_clock;

class Frame {
 public:
  Frame(const Engine& engine, Workspace& space, const td_call& call)
      : engine_(engine), program_(engine.program), space_(space), call_(call),
        sets_(engine, space, call) {}

  int32_t run() {
    const int grain = std::max(1, int(call_.slots[0].input_grain));
    space_.prepare(program_, engine_, call_.n_slots, std::max(1, call_.threads), grain);
    for (int s = 0; s < call_.n_slots; ++s) {
      const td_slot& slot = call_.slots[s];
      for (int64_t* counts : {slot.active_px, slot.published_px, slot.published_groups})
        std::fill_n(counts, program_.steps.size(), int64_t(0));
      any_in_tiles_ |= !slot.exact;
    }
    const int n = static_cast<int>(program_.steps.size());
    bool with_input = true;
    for (int i = 0; i < n || with_input;) {
      int end = i;
      while (end < n && program_.steps[end].code != Code::foreign) ++end;
      parallel(with_input, i, end);
      if (failed_) return kNoMemory;
      with_input = false;
      if (end < n) {
        const int32_t failed = run_foreign(end);
        if (failed) return failed;
      }
      i = end + 1;
    }
    report();
    return 0;
  }

 private:
  // Runs the input gate and the steps [begin, end) on all threads.
  void parallel(bool with_input, int begin, int end) {
    if (!with_input && begin == end) return;
    const int threads = std::max(1, call_.threads);
    if (threads == 1) {
      work(0, 1, with_input, begin, end);
      return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num(), omp_get_num_threads(), with_input, begin, end);
#else
    work(0, 1, with_input, begin, end);
#endif
  }

  void work(int thread, int threads, bool with_input, int begin, int end) {
    if (with_input) gate_input(thread, threads);
    if (thread == 0) begin_ = Clock::now();
    for (int i = begin; i < end; ++i) run_step(i, thread, threads);
  }

  // The publish rule of the input, on blocks of rows: a thread that wakes late does fewer of them.
  void gate_input(int thread, int threads) {
    Scratch& scratch = space_.scratch[thread];
    input_blocks(&space_.next_hot, [&](int s, int y0, int y1) {
      if (call_.slots[s].whole) return;
      attempt([&] { engine_.kernels->find_hot(input_job(s), y0, y1, scratch); });
    });
    barrier_.wait(threads);
    input_blocks(&space_.next_publish, [&](int s, int y0, int y1) {
      if (!mark_input(s, y0, y1, space_.rows(thread))) return;
      set_flag(&space_.any_at(program_.input.value, s));
      attempt([&] { engine_.kernels->publish_input(input_job(s), y0, y1, scratch); });
    });
    barrier_.wait(threads);
  }

  // Calls run(slot, y0, y1) for blocks of rows until all have been taken.
  template <class Run>
  void input_blocks(std::atomic<int>* next, Run run) {
    // whole rows of cells
    const int grain = space_.cells(0).grain, rows = (kInputRows + grain - 1) / grain * grain;
    const int h = program_.input.h, each = (h + rows - 1) / rows;
    for (;;) {
      const int block = next->fetch_add(1, std::memory_order_relaxed);
      if (block >= each * call_.n_slots) return;
      const int y0 = block % each * rows;
      run(block / each, y0, std::min(h, y0 + rows));
    }
  }

  // Makes rows y0 .. y1 of the input's change mask; says whether any pixel is in it.
  bool mark_input(int s, int y0, int y1, uint64_t* rows) {
    const Input& in = program_.input;
    const td_slot& slot = call_.slots[s];
    const InputJob job = input_job(s);
    bool any = false;
    for (int y = y0; y < y1; ++y) {
      uint64_t* const row = job.changed + size_t(y) * job.words;
      if (slot.whole)
        std::fill_n(row, job.words, 0);
      else if (job.by_cell())
        copy_cells(job, y, row);
      else if (slot.input_threshold > 0)
        dilate_row(job.hot, y, in.h, in.w, row, rows);
      else
        std::copy_n(job.hot + size_t(y) * job.words, job.words, row);
      keep_valid(slot, y, in.w, row, rows);
      mark_outside(job.seen, y, in.w, row);
      any |= any_bit(row, job.words);
    }
    return any;
  }

  // Makes row y of the change mask, by cells: all rows of a cell are alike, and a block has them all.
  static void copy_cells(const InputJob& job, int y, uint64_t* row) {
    const int top = y - y % job.cells.grain;
    uint64_t* const first = job.hot + size_t(top) * job.words;
    if (y == top) mark_cells(job.cells, y, job.program->input.w, first);
    std::copy_n(first, job.words, row);
  }

  InputJob input_job(int s) {
    return {&program_, &call_.slots[s], seen(program_, call_.slots[s], program_.input.value),
            space_.hot(s), space_.changed(program_.input.value, s), words_of(program_.input.w),
            space_.cells(s)};
  }

  static void set_flag(uint8_t* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

  // Whether a slot needs a step, and computes it with these weights.
  bool takes(int i, const Packed* packed, int s) const {
    return sets_.wanted(i, s) && engine_.packed_of(i, call_.slots[s].exact) == packed;
  }

  // Lists the active pixels of this thread's share of the rows.
  void list(int i, const Packed* packed, int thread, int threads) {
    const Step& step = program_.steps[i];
    const Value& v = program_.values[step.output];
    const int words = words_of(v.w);
    // tiles are listed by rows of tiles
    const int side = packed ? packed->tile : 1, down = (v.h + side - 1) / side;
    int slots = 0;
    for (int s = 0; s < call_.n_slots; ++s) slots += takes(i, packed, s);
    const long rows = long(slots) * down;
    // a small map is one list: cut into the threads' parts, its register blocks would be half full
    const bool alone = rows * v.w <= kOneList;
    const long r0 = alone ? (thread ? rows : 0) : rows * thread / threads;
    const long r1 = alone ? rows : rows * (thread + 1) / threads;
    Pixel* const begin = space_.pixels.get() + size_t(r0) * v.w;
    Pixel* at = begin;
    long row = 0;
    for (int s = 0; s < call_.n_slots && row < r1; ++s) {
      if (!takes(i, packed, s)) continue;
      int64_t px = 0;
      uint64_t* const changed = space_.changed(step.output, s);
      for (int top = 0; top < v.h; top += side, ++row) {
        if (row < r0 || row >= r1) continue;
        uint64_t* active[2] = {space_.rows(thread), space_.rows(thread) + 2 * space_.row_words};
        for (int k = 0; k < side; ++k) {
          const int y = top + k;
          if (y == v.h) {
            std::fill_n(active[k], words, 0);
            continue;
          }
          sets_.find_row(i, s, y, active[k], space_.rows(thread) + space_.row_words);
          std::fill_n(changed + size_t(y) * words, words, 0);
          px += count_bits(active[k], words);
          if (uint8_t* out = call_.slots[s].active)
            unpack(active[k], 1, v.w, out + engine_.step_px[i] + size_t(y) * v.w);
        }
        at += side == 1 ? list_row(active[0], words, top, s, at)
                        : list_tiles(active[0], active[1], words, top, s, at);
      }
      if (px) __atomic_fetch_add(&call_.slots[s].active_px[i], px, __ATOMIC_RELAXED);
    }
    space_.lists[thread] = {size_t(r0) * v.w, size_t(at - begin)};
  }

  void run_step(int i, int thread, int threads) {
    run_slots(i, engine_.packed[i].get(), 0, thread, threads);
    if (any_in_tiles_ && engine_.tiles[i])
      run_slots(i, engine_.tiles[i].get(), 1, thread, threads);
    if (call_.step_ms && thread == 0) {
      const Clock::time_point now = Clock::now();
      call_.step_ms[i] += std::chrono::duration<double, std::milli>(now - begin_).count();
      begin_ = now;
    }
  }

  // Runs a step in the slots that compute it with these weights; packing: their number.
  void run_slots(int i, const Packed* packed, int packing, int thread, int threads) {
    bool any = false;
    for (int s = 0; s < call_.n_slots && !any; ++s) any = takes(i, packed, s);
    if (!any) return;
    list(i, packed, thread, threads);
    barrier_.wait(threads);
    run_tasks(i, packed, packing, thread, threads);
    barrier_.wait(threads);
  }

  // Runs a kernel. Nothing may be thrown out of a parallel region, and the other threads wait at the
  // next barrier: a thread without memory goes on, and the frame fails.
  template <class Kernel>
  void attempt(Kernel kernel) noexcept {
    try {
      kernel();
    } catch (const std::bad_alloc&) {
      failed_.store(true, std::memory_order_relaxed);
    }
  }

  // Works through this thread's share of the tasks, then helps the others. Neighbouring tasks of one
  // thread use neighbouring weights.
  void run_tasks(int i, const Packed* packed, int packing, int thread, int threads) {
    size_t total = 0;
    for (int t = 0; t < threads; ++t) total += space_.lists[t].count;
    if (!total) return;
    const Code code = program_.steps[i].code;
    const bool by_group = packed ? packed->by_group : reads_many(code);
    const Value& out = program_.values[program_.steps[i].output];
    const int groups = by_group ? (out.c + kGroup - 1) / kGroup : 1;
    const size_t most = packed ? packed->most_px : kBlockPx;
    const size_t block = block_px(code, total, groups, threads, most);
    const Job job = make_job(i, packed);
    const int tasks = count_tasks(block, groups, threads);
    for (int k = 0; k < threads; ++k) {
      const int owner = (thread + k) % threads;
      const int begin = int(long(tasks) * owner / threads);
      const int end = int(long(tasks) * (owner + 1) / threads);
      std::atomic<int>& next = space_.next[(2 * size_t(i) + packing) * threads + owner];
      for (;;) {
        const int task = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (task >= end) break;
        run_task(job, task, tasks / groups, block, by_group, space_.scratch[thread]);
      }
    }
  }

  // Groups outside, blocks of the threads' lists inside.
  void run_task(const Job& job, int task, int blocks, size_t block, bool by_group,
                Scratch& scratch) {
    int rest = task % blocks;
    for (const List& list : space_.lists) {
      const int here = int((list.count + block - 1) / block);
      if (rest >= here) {
        rest -= here;
        continue;
      }
      const size_t from = list.begin + size_t(rest) * block;
      const size_t to = std::min(list.begin + list.count, from + block);
      attempt([&] { engine_.kernels->run(job, from, to, by_group ? task / blocks : -1, scratch); });
      return;
    }
  }

  int count_tasks(size_t block, int groups, int threads) const {
    size_t blocks = 0;
    for (int t = 0; t < threads; ++t) blocks += (space_.lists[t].count + block - 1) / block;
    return int(blocks) * groups;
  }

  // Whether an output is hundreds of inputs: a pixel's group is a task.
  static bool reads_many(Code code) {
    return code == Code::tile_sum || code == Code::tile_max || code == Code::adaptive_avg ||
           code == Code::adaptive_max;
  }

  // Several tasks for each thread, or its share is left to chance; none smaller than is worth it.
  static size_t block_px(Code code, size_t total, int groups, int threads, size_t most) {
    if (reads_many(code)) return 1;
    constexpr size_t kUnit = 12, kTasksEach = 8;
    const size_t wanted = size_t(threads) * kTasksEach;
    const size_t blocks = std::max<size_t>(1, (wanted + groups - 1) / groups);
    const size_t px = (total / blocks + kUnit - 1) / kUnit * kUnit;
    // weights are read once for a task: two units, unless there are too few groups for all threads
    const size_t least = groups < 2 * threads ? kUnit : 2 * kUnit;
    return threads == 1 ? most : std::clamp<size_t>(px, least, most);
  }

  Job make_job(int i, const Packed* packed) {
    const Step& step = program_.steps[i];
    return {&program_,
            &step,
            packed,
            call_.slots,
            space_.pixels.get(),
            space_.changed_of(step.output),
            words_of(program_.values[step.output].w),
            &space_.any_at(step.output, 0),
            sets_.forced(i, 0) != nullptr,
            call_.norm_is_max != 0};
  }

  int32_t run_foreign(int i) {
    const Step& step = program_.steps[i];
    const Value& v = program_.values[step.output];
    const int words = words_of(v.w);
    const size_t area = size_t(v.h) * v.w;
    std::vector<uint8_t> active(area), changed(area);
    uint64_t* const row = space_.rows(0);
    for (int s = 0; s < call_.n_slots; ++s) {
      if (!sets_.wanted(i, s)) continue;
      int64_t count = 0;
      for (int y = 0; y < v.h; ++y) {
        sets_.find_row(i, s, y, row, row + space_.row_words);
        count += count_bits(row, words);
        unpack(row, 1, v.w, active.data() + size_t(y) * v.w);
      }
      call_.slots[s].active_px[i] = count;
      if (call_.slots[s].active)
        std::memcpy(call_.slots[s].active + engine_.step_px[i], active.data(), area);
      if (!count) continue;
      std::fill(changed.begin(), changed.end(), uint8_t(0));
      const int32_t failed = call_.foreign(i, s, active.data(), changed.data());
      if (failed) return failed;
      uint64_t* const mask = space_.changed(step.output, s);
      for (int y = 0; y < v.h; ++y)
        pack_row(changed.data() + size_t(y) * v.w, v.w, mask + size_t(y) * words);
      const int64_t published = count_bits(mask, size_t(v.h) * words);
      call_.slots[s].published_px[i] = published;
      space_.any_at(step.output, s) = published > 0;
    }
    if (call_.step_ms) {
      const Clock::time_point now = Clock::now();
      call_.step_ms[i] += std::chrono::duration<double, std::milli>(now - begin_).count();
      begin_ = now;
    }
    return 0;
  }

  void report() {
    for (size_t n = 0; n < program_.reported.size(); ++n) {
      const int value = program_.reported[n];
      const Value& v = program_.values[value];
      for (int s = 0; s < call_.n_slots; ++s) {
        const td_slot& slot = call_.slots[s];
        slot.changed_px[n] = 0;
        if (!space_.any_at(value, s)) continue;
        const uint64_t* const mask = space_.changed(value, s);
        const size_t words = size_t(v.h) * words_of(v.w);
        slot.changed_px[n] += count_bits(mask, words);
        std::memcpy(slot.changed + engine_.reported_words[n], mask, words * sizeof(uint64_t));
      }
    }
  }

  // pixels of a map that one thread lists
  static constexpr long kOneList = 2048;
  // the gate looks at one more row on each side of a block
  static constexpr int kInputRows = 32;
  const Engine& engine_;
  const Program& program_;
  Workspace& space_;
  const td_call& call_;
  const ActiveSets sets_;
  Barrier barrier_;
  Clock::time_point begin_;
  std::atomic<bool> failed_{false};
  // whether some slot computes in tiles where it can
  bool any_in_tiles_ = false;
};

}  // namespace

int32_t run_frame(const Engine& engine, Workspace& space, const td_call& call) {
  return Frame(engine, space, call).run();
}

}  // namespace td
