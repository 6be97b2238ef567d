// The C interface: picks the kernels, keeps exceptions inside.
#include <algorithm>
#include <cstring>
#include <string>

#include "engine.h"
#include "frame.h"
#include "warp.h"

namespace {

using Table = const td::Kernels* (*)(bool);

struct Isa {
  const char* name;
  bool (*here)();
  Table table;
};

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// best first
const Isa kIsas[] = {
    {"avx512_bf16", has_avx512_bf16, td::kernels_avx512_bf16},
    {"avx512", has_avx512, td::kernels_avx512},
    {"avx2", has_avx2, td::kernels_avx2},
};
#elif defined(__aarch64__)
bool always() { return true; }
const Isa kIsas[] = {{"neon", always, td::kernels_neon}};
#else
#error "no kernels for this processor"
#endif

void say(char* message, uint64_t bytes, const std::string& what) {
  if (!bytes) return;
  const size_t n = std::min<size_t>(bytes - 1, what.size());
  std::memcpy(message, what.data(), n);
  message[n] = 0;
}

}  // namespace

struct td_program {
  td::Engine engine;
};

extern "C" {

int32_t td_abi(void) { return TD_ABI; }

const char* td_isas(void) {
  static const std::string names = [] {
    std::string out;
    for (const Isa& isa : kIsas)
      if (isa.here()) out += (out.empty() ? "" : ",") + std::string(isa.name);
    return out;
  }();
  return names.c_str();
}

const char* td_names(void) {
  static const std::string names =
      "operations" TD_OPERATIONS(TD_NAME) "\nfunctions" TD_FUNCTIONS(TD_NAME) "\npairs" TD_PAIRS(
          TD_NAME) "\ngroup " +
      std::to_string(td::kGroup) + "\ntd_slot " + std::to_string(sizeof(td_slot)) + "\ntd_call " +
      std::to_string(sizeof(td_call)) + "\ntd_warp_call " + std::to_string(sizeof(td_warp_call));
  return names.c_str();
}

td_program* td_load(const void* program, uint64_t bytes, const char* isa, char* message,
                    uint64_t message_bytes) {
  try {
    td::Program read = td::read_program(static_cast<const uint8_t*>(program), bytes);
    for (const Isa& candidate : kIsas) {
      if (std::strcmp(candidate.name, isa) != 0) continue;
      if (!candidate.here()) throw std::runtime_error("this CPU has no " + std::string(isa));
      const td::Kernels* kernels = candidate.table(read.is_bf16);
      if (!kernels) throw std::runtime_error(std::string(isa) + " has no bfloat16 arithmetic");
      return new td_program{td::Engine(std::move(read), kernels)};
    }
    throw std::runtime_error("unknown instruction set " + std::string(isa));
  } catch (const std::exception& error) {
    say(message, message_bytes, error.what());
    return nullptr;
  }
}

void td_free(td_program* program) { delete program; }

uint64_t td_weight_bytes(const td_program* program) { return program->engine.weight_bytes(); }

uint64_t td_scratch_bytes(const td_program* program) { return program->engine.scratch_bytes(); }

int32_t td_step(td_program* program, const td_call* call) {
  try {
    return program->engine.step(*call);
  } catch (const std::exception&) {
    // out of memory: the only thing that can be thrown
    return td::kNoMemory;
  }
}

int32_t td_warp(const char* isa, const td_warp_call* call) {
  try {
    for (const Isa& candidate : kIsas) {
      if (std::strcmp(candidate.name, isa) != 0 || !candidate.here()) continue;
      td::run_warp(*candidate.table(false), *call);
      return 0;
    }
    return 1;
  } catch (const std::exception&) {
    return td::kNoMemory;
  }
}
}
