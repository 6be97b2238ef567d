// Memory of the packed weights: one piece after the other, on huge pages where the system has them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace td {

class Arena {
 public:
  // wanted: bytes to come, more or less; where they are fewer than a huge page, small ones will do
  explicit Arena(size_t wanted) : block_(wanted < kHugePage ? 0 : kBlock) {}

  // n numbers, all 0, on a cache line; they live as long as the arena
  template <class T>
  T* get(size_t n) {
    const size_t bytes = (n * sizeof(T) + kLine - 1) / kLine * kLine;
    if (!next_ || bytes > left_) add_block(bytes);
    unsigned char* const at = next_;
    next_ += bytes;
    left_ -= bytes;
    return reinterpret_cast<T*>(std::memset(at, 0, bytes));
  }

 private:
  static constexpr size_t kLine = 64, kHugePage = 2 << 20;
#if defined(__SANITIZE_ADDRESS__)
  // each piece alone, so that reading beyond it is noticed
  static constexpr size_t kBlock = 0;
#else
  // nobody pays for what is left over: pages exist once they are written
  static constexpr size_t kBlock = 16 * kHugePage;
#endif

  void add_block(size_t bytes) {
    const size_t unit = block_ ? kHugePage : kLine;
    left_ = std::max((std::max(bytes, kLine) + unit - 1) / unit * unit, block_);
    blocks_.emplace_back(static_cast<unsigned char*>(std::aligned_alloc(unit, left_)), std::free);
    next_ = blocks_.back().get();
    if (!next_) throw std::bad_alloc();
#if defined(__linux__)
    // a hint; before the first touch, which is what makes a page
    if (block_) madvise(next_, left_, MADV_HUGEPAGE);
#endif
  }

  const size_t block_;  // bytes, 0: each piece for itself
  std::vector<std::unique_ptr<unsigned char, void (*)(void*)>> blocks_;
  unsigned char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace td
