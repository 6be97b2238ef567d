// Memory with guard zones, and how a check fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace td_test {

constexpr size_t kLine = 64, kGuardBytes = 512;
constexpr unsigned char kPattern = 0xa5, kNan = 0xff;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool good, const std::string& what) {
  if (!good) throw Failure(what);
}

// Memory that begins on a cache line, ends at its last byte, and has guard zones around it.
class Guarded {
 public:
  explicit Guarded(size_t bytes = 0, unsigned char fill = 0)
      : memory_(new unsigned char[bytes + 2 * kGuardBytes + kLine]), bytes_(bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.get()) + kGuardBytes;
    data_ = reinterpret_cast<unsigned char*>((begin + kLine - 1) / kLine * kLine);
    std::memset(data_ - kGuardBytes, kPattern, kGuardBytes);
    std::memset(data_ + bytes, kPattern, kGuardBytes);
    std::memset(data_, fill, bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(data_ - kGuardBytes, kGuardBytes);
    __asan_poison_memory_region(data_ + bytes, kGuardBytes);
#endif
  }
  Guarded(const void* from, size_t bytes) : Guarded(bytes) {
    if (bytes) std::memcpy(data_, from, bytes);
  }
  Guarded(Guarded&&) = default;
  Guarded& operator=(Guarded&& other) {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
#if defined(__SANITIZE_ADDRESS__)
  ~Guarded() {
    if (!memory_) return;
    __asan_unpoison_memory_region(data_ - kGuardBytes, kGuardBytes);
    __asan_unpoison_memory_region(data_ + bytes_, kGuardBytes);
  }
#endif
  template <class T>
  T* at() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  bool whole() const {
#if !defined(__SANITIZE_ADDRESS__)
    for (size_t i = 0; i < kGuardBytes; ++i)
      if (data_[-ptrdiff_t(i) - 1] != kPattern || data_[bytes_ + i] != kPattern) return false;
#endif
    return true;
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_;
  size_t bytes_;
};

}  // namespace td_test
