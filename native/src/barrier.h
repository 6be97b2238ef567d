// Where all threads of a frame meet.
#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include <atomic>

namespace td {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void give_way() {
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

}  // namespace td
