// Runs a program: for each step the active set, its list of pixels, and the kernel over blocks of it.
#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "masks.h"

namespace td {
namespace {

using Clock = std::chrono::steady_clock;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void give_way() {
#if defined(__unix__) || defined(__APPLE__)
  sched_yield();
#endif
}

// All threads of a frame meet here; spins, because the waits are microseconds.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const unsigned phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // a thread that has lost its core must get it back
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kSpins)
        relax();
      else
        give_way();
    }
  }

 private:
  static constexpr int kSpins = 4000;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> phase_{0};
};

// One call of td_step.
class Frame {
 public:
  Frame(const Engine& engine, Workspace& space, const td_call& call)
      : engine_(engine), program_(engine.program), space_(space), call_(call) {}

  int32_t run() {
    space_.prepare(program_, engine_, call_.n_slots, std::max(1, call_.threads));
    space_.publish.clear();
    space_.publish_forced.clear();
    for (int s = 0; s < call_.n_slots; ++s) {
      const td_slot& slot = call_.slots[s];
      space_.publish.push_back(slot.whole ? kWhole : kGated);
      space_.publish_forced.push_back(slot.whole ? kWhole : kForced);
      std::fill_n(slot.active_px, program_.steps.size(), int64_t(0));
    }
    const int n = static_cast<int>(program_.steps.size());
    bool with_input = true;
    for (int i = 0; i < n || with_input;) {
      int end = i;
      while (end < n && program_.steps[end].code != Code::foreign) ++end;
      parallel(with_input, i, end);
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
      if (!call_.slots[s].whole) engine_.kernels->find_hot(input_job(s), y0, y1, scratch);
    });
    barrier_.wait(threads);
    input_blocks(&space_.next_publish, [&](int s, int y0, int y1) {
      if (!mark_input(s, y0, y1, space_.rows(thread))) return;
      set_flag(&space_.any_at(program_.input.value, s));
      engine_.kernels->publish_input(input_job(s), y0, y1, scratch);
    });
    barrier_.wait(threads);
  }

  // Calls run(slot, y0, y1) for blocks of rows until all have been taken.
  template <class Run>
  void input_blocks(std::atomic<int>* next, Run run) {
    const int h = program_.input.h, each = (h + kInputRows - 1) / kInputRows;
    for (;;) {
      const int block = next->fetch_add(1, std::memory_order_relaxed);
      if (block >= each * call_.n_slots) return;
      const int y0 = block % each * kInputRows;
      run(block / each, y0, std::min(h, y0 + kInputRows));
    }
  }

  // Makes rows y0 .. y1 of the input's change mask; says whether any pixel is in it.
  bool mark_input(int s, int y0, int y1, uint64_t* rows) {
    const Input& in = program_.input;
    const InputJob job = input_job(s);
    uint64_t any = 0;
    for (int y = y0; y < y1; ++y) {
      uint64_t* const row = job.changed + size_t(y) * job.words;
      if (call_.slots[s].whole)
        fill_row(row, in.w);
      else if (call_.slots[s].input_threshold > 0)
        dilate_row(job.hot, y, in.h, in.w, row, rows);
      else
        std::memcpy(row, job.hot + size_t(y) * job.words, size_t(job.words) * 8);
      for (int i = 0; i < job.words; ++i) any |= row[i];
    }
    return any != 0;
  }

  InputJob input_job(int s) {
    return {&program_, &call_.slots[s], space_.hot(s), space_.changed(program_.input.value, s),
            words_of(program_.input.w)};
  }

  // Grows the hot pixels by one in all directions.
  static void dilate_row(const uint64_t* hot, int y, int h, int w, uint64_t* out, uint64_t* rows) {
    const int words = words_of(w);
    std::fill_n(rows, words, 0);
    for (int i = std::max(0, y - 1); i <= std::min(h - 1, y + 1); ++i)
      for (int k = 0; k < words; ++k) rows[k] |= hot[size_t(i) * words + k];
    for (int k = 0; k < words; ++k) {
      const uint64_t left = k ? rows[k - 1] >> 63 : 0, right = k + 1 < words ? rows[k + 1] << 63 : 0;
      out[k] = rows[k] | rows[k] << 1 | left | rows[k] >> 1 | right;
    }
    out[words - 1] &= tail_mask(w);
  }

  static void set_flag(uint8_t* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

  // Whether a step has anything to do for a slot. All threads find the same.
  bool wanted(int i, int s) const {
    if (call_.slots[s].whole || forced(i, s)) return true;
    for (int value : program_.steps[i].inputs)
      for (int owner : program_.values[value].owners)
        if (space_.any_at(owner, s)) return true;
    return false;
  }

  const uint8_t* forced(int i, int s) const {
    return call_.slots[s].forced ? call_.slots[s].forced[i] : nullptr;
  }

  // Finds the active pixels of row y of a step's output.
  void active_row(int i, int s, int y, uint64_t* out, uint64_t* rows) const {
    const Step& step = program_.steps[i];
    const Value& v = program_.values[step.output];
    const int words = words_of(v.w);
    std::fill_n(out, words, 0);
    if (call_.slots[s].whole) {
      fill_row(out, v.w);
      return;
    }
    for (size_t n = 0; n < step.inputs.size(); ++n) {
      const Footprint& f = step.footprints[n];
      const Value& in = program_.values[step.inputs[n]];
      const int in_words = words_of(in.w);
      bool gathered = false;
      for (int owner : in.owners) {
        if (!space_.any_at(owner, s)) continue;
        const uint64_t* mask = space_.changed(owner, s);
        if (f.kind == Footprint::everything) {
          fill_row(out, v.w);
        } else if (f.kind == Footprint::identity) {
          for (int k = 0; k < words; ++k) out[k] |= mask[size_t(y) * words + k];
        } else {
          if (!gathered) std::fill_n(rows, in_words, 0);
          gathered |= gather_rows(f.rows, mask, in_words, y, rows);
        }
      }
      if (gathered) spread_row(f.cols, rows, out);
    }
    // the step's own set was found all the same: that work is part of a frame
    if (const uint8_t* set = forced(i, s)) pack_row(set + size_t(y) * v.w, v.w, out);
  }

  // Lists the active pixels of this thread's share of the rows.
  void list(int i, int thread, int threads) {
    const Step& step = program_.steps[i];
    const Value& v = program_.values[step.output];
    const int words = words_of(v.w);
    int slots = 0;
    for (int s = 0; s < call_.n_slots; ++s) slots += wanted(i, s);
    const long rows = long(slots) * v.h;
    const long r0 = rows * thread / threads, r1 = rows * (thread + 1) / threads;
    Pixel* const begin = space_.pixels.get() + size_t(r0) * v.w;
    Pixel* at = begin;
    long row = 0;
    for (int s = 0; s < call_.n_slots && row < r1; ++s) {
      if (!wanted(i, s)) continue;
      const Pixel* const slot_begin = at;
      uint64_t* const changed = space_.changed(step.output, s);
      for (int y = 0; y < v.h; ++y, ++row) {
        if (row < r0 || row >= r1) continue;
        uint64_t* const active = space_.rows(thread);
        active_row(i, s, y, active, active + space_.row_words);
        std::fill_n(changed + size_t(y) * words, words, 0);
        at += list_row(active, words, y, s, at);
        if (uint8_t* out = call_.slots[s].active)
          unpack(active, 1, v.w, out + engine_.step_px[i] + size_t(y) * v.w);
      }
      if (at != slot_begin)
        __atomic_fetch_add(&call_.slots[s].active_px[i], at - slot_begin, __ATOMIC_RELAXED);
    }
    space_.lists[thread] = {size_t(r0) * v.w, size_t(at - begin)};
  }

  void run_step(int i, int thread, int threads) {
    bool any = false;
    for (int s = 0; s < call_.n_slots && !any; ++s) any = wanted(i, s);
    if (any) {
      list(i, thread, threads);
      barrier_.wait(threads);
      run_tasks(i, thread, threads);
      barrier_.wait(threads);
    }
    if (call_.step_ms && thread == 0) {
      const Clock::time_point now = Clock::now();
      call_.step_ms[i] += std::chrono::duration<double, std::milli>(now - begin_).count();
      begin_ = now;
    }
  }

  // Works through this thread's share of the tasks, then helps the others. Neighbouring tasks of one
  // thread use neighbouring weights.
  void run_tasks(int i, int thread, int threads) {
    size_t total = 0;
    for (int t = 0; t < threads; ++t) total += space_.lists[t].count;
    if (!total) return;
    const Packed* packed = engine_.packed[i].get();
    const Code code = program_.steps[i].code;
    const bool by_group = packed ? packed->by_group : reads_many(code);
    const Value& out = program_.values[program_.steps[i].output];
    const int groups = by_group ? (out.c + kGroup - 1) / kGroup : 1;
    const size_t block = block_px(code, total, groups, threads);
    const Job job = make_job(i);
    const int tasks = count_tasks(block, groups, threads);
    for (int k = 0; k < threads; ++k) {
      const int owner = (thread + k) % threads;
      const int begin = int(long(tasks) * owner / threads);
      const int end = int(long(tasks) * (owner + 1) / threads);
      std::atomic<int>& next = space_.next[size_t(i) * threads + owner];
      for (;;) {
        const int task = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (task >= end) break;
        run_task(job, task, tasks / groups, block, by_group, space_.scratch[thread]);
      }
    }
  }

  // Groups outside, blocks of the threads' lists inside.
  void run_task(const Job& job, int task, int blocks, size_t block, bool by_group,
                Scratch& scratch) const {
    int rest = task % blocks;
    for (const List& list : space_.lists) {
      const int here = int((list.count + block - 1) / block);
      if (rest >= here) {
        rest -= here;
        continue;
      }
      const size_t from = list.begin + size_t(rest) * block;
      const size_t to = std::min(list.begin + list.count, from + block);
      engine_.kernels->run(job, from, to, by_group ? task / blocks : -1, scratch);
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
  static size_t block_px(Code code, size_t total, int groups, int threads) {
    if (reads_many(code)) return 1;
    constexpr size_t kUnit = 12, kTasksEach = 8;
    const size_t wanted = size_t(threads) * kTasksEach;
    const size_t blocks = std::max<size_t>(1, (wanted + groups - 1) / groups);
    const size_t px = (total / blocks + kUnit - 1) / kUnit * kUnit;
    return threads == 1 ? kBlockPx : std::clamp<size_t>(px, 2 * kUnit, kBlockPx);
  }

  Job make_job(int i) {
    const Step& step = program_.steps[i];
    return {&program_,
            &step,
            engine_.packed[i].get(),
            call_.slots,
            space_.pixels.get(),
            space_.changed_of(step.output),
            words_of(program_.values[step.output].w),
            &space_.any_at(step.output, 0),
            forced(i, 0) ? space_.publish_forced.data() : space_.publish.data(),
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
      if (!wanted(i, s)) continue;
      int64_t count = 0;
      for (int y = 0; y < v.h; ++y) {
        active_row(i, s, y, row, row + space_.row_words);
        for (int k = 0; k < words; ++k) count += __builtin_popcountll(row[k]);
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
      bool any = false;
      for (int y = 0; y < v.h; ++y) {
        pack_row(changed.data() + size_t(y) * v.w, v.w, mask + size_t(y) * words);
        any |= any_bit(mask + size_t(y) * words, words);
      }
      space_.any_at(step.output, s) = any;
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
        for (size_t k = 0; k < words; ++k) slot.changed_px[n] += __builtin_popcountll(mask[k]);
        std::memcpy(slot.changed + engine_.reported_words[n], mask, words * sizeof(uint64_t));
      }
    }
  }

  // the gate looks at one more row on each side of a block
  static constexpr int kInputRows = 32;
  const Engine& engine_;
  const Program& program_;
  Workspace& space_;
  const td_call& call_;
  Barrier barrier_;
  Clock::time_point begin_;
};

}  // namespace

void Workspace::prepare(const Program& program, const Engine& engine, int slots, int threads) {
  slots_ = slots;
  n_values_ = static_cast<int>(program.values.size());
  if (static_cast<int>(scratch.size()) < threads) scratch.resize(threads);
  lists.assign(threads, {0, 0});
  const size_t counters = program.steps.size() * threads;
  if (next_size_ < counters) {
    next_size_ = counters;
    next.reset(new std::atomic<int>[next_size_]);
  }
  for (size_t i = 0; i < next_size_; ++i) next[i].store(0, std::memory_order_relaxed);
  next_hot = next_publish = 0;
  any_.assign(size_t(n_values_) * slots, 0);
  row_words = engine.row_words;
  rows_.resize(size_t(threads) * 2 * row_words);
  const size_t mask_words = engine.mask_words.back() * slots;
  if (masks_size_ < mask_words) {
    masks_size_ = mask_words;
    masks_.reset(new uint64_t[mask_words]);
  }
  const size_t hot_words = size_t(program.input.h) * words_of(program.input.w);
  hot_words_ = hot_words;
  if (hot_.size() < hot_words * slots) hot_.resize(hot_words * slots);
  const size_t px = engine.largest_px * slots;
  if (pixels_size_ < px) {
    pixels_size_ = px;
    pixels.reset(new Pixel[px]);
  }
  addresses_.resize(size_t(n_values_) * slots);
  for (int v = 0; v < n_values_; ++v)
    for (int s = 0; s < slots; ++s)
      addresses_[size_t(v) * slots + s] =
          masks_.get() + engine.mask_words[v] * slots +
          (engine.mask_words[v + 1] - engine.mask_words[v]) * size_t(s);
}

size_t Workspace::bytes() const {
  size_t total = masks_size_ * 8 + hot_.size() * 8 + rows_.size() * 8 + pixels_size_ * sizeof(Pixel) +
                 any_.size() + addresses_.size() * sizeof(void*);
  for (const Scratch& s : scratch) total += s.bytes.size();
  return total;
}

namespace {

// Bytes of the model's weights, in float32.
size_t raw_weight_bytes(const Program& program) {
  size_t count = 0;
  for (const Step& step : program.steps)
    for (const std::vector<float>& array : step.params.arrays) count += array.size();
  return count * sizeof(float);
}

}  // namespace

Engine::Engine(Program p, const Kernels* k)
    : program(std::move(p)), kernels(k), weights(raw_weight_bytes(program)) {
  mask_words.push_back(0);
  int widest = program.input.w;
  for (const Value& v : program.values) {
    mask_words.push_back(mask_words.back() + size_t(v.h) * words_of(v.w));
    widest = std::max(widest, v.w);
  }
  row_words = words_of(widest) + 1;
  size_t px = 0;
  for (const Step& step : program.steps) {
    const Value& v = program.values[step.output];
    step_px.push_back(px);
    px += size_t(v.h) * v.w;
    largest_px = std::max(largest_px, size_t(v.h) * v.w);
    packed.push_back(step.code == Code::foreign ? nullptr : kernels->prepare(program, step, weights));
  }
  size_t words = 0;
  for (int value : program.reported) {
    reported_words.push_back(words);
    words += size_t(program.values[value].h) * words_of(program.values[value].w);
  }
  // the packed weights replace these
  for (Step& step : program.steps) {
    if (step.code != Code::conv2d && step.code != Code::conv_transpose2d) continue;
    step.params.arrays.clear();
    step.params.arrays.shrink_to_fit();
  }
}

int32_t Engine::step(const td_call& call) {
  std::unique_ptr<Workspace> space = borrow();
  Frame frame(*this, *space, call);
  const int32_t result = frame.run();
  give_back(std::move(space));
  return result;
}

std::unique_ptr<Workspace> Engine::borrow() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> space = std::move(free_.back());
  free_.pop_back();
  scratch_bytes_ -= space->bytes();
  return space;
}

void Engine::give_back(std::unique_ptr<Workspace> space) {
  std::lock_guard<std::mutex> lock(mutex_);
  scratch_bytes_ += space->bytes();
  free_.push_back(std::move(space));
}

size_t Engine::scratch_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return scratch_bytes_;
}

}  // namespace td
