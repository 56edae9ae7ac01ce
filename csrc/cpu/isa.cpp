// Chooses the instruction set at run time.
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace r21d::cpu {
namespace {

struct Candidate {
  const Isa* table;
  bool (*supported)();
};

bool always() {
  return true;
}

#ifdef R21D_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

// Best first.
const Candidate kCandidates[] = {
#ifdef R21D_X86
    {&kIsaAvx512Bf16, has_avx512_bf16},
    {&kIsaAvx512, has_avx512},
    {&kIsaAvx2, has_avx2},
#endif
    {&kIsaGeneric, always},
};

}  // namespace

int available_isas(const Isa** tables, int capacity) {
  int count = 0;
  for (const Candidate& candidate : kCandidates) {
    if (count < capacity && candidate.supported()) {
      tables[count++] = candidate.table;
    }
  }
  return count;
}

// Read at each call, so that a test can force one after another in one process.
const Isa& isa() {
  const char* forced = std::getenv("R21D_CPU_ISA");
  std::string known;
  for (const Candidate& candidate : kCandidates) {
    if (forced == nullptr || *forced == '\0') {
      if (candidate.supported()) {
        return *candidate.table;
      }
    } else if (std::string(candidate.table->name) == forced) {
      if (!candidate.supported()) {
        throw std::runtime_error(
            std::string("R21D_CPU_ISA=") + forced +
            " was asked for, but this CPU does not have it");
      }
      return *candidate.table;
    }
    known += std::string(known.empty() ? "" : ", ") + candidate.table->name;
  }
  throw std::runtime_error(
      std::string("R21D_CPU_ISA=") + forced + " is not known; this build has " + known);
}

int64_t l2_bytes() {
  constexpr int64_t kDefault = int64_t{1} << 20;
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : kDefault;
#else
  return kDefault;
#endif
}

}  // namespace r21d::cpu
