// The probes of probes.cuh: their names and sizes. Plain data, host and device.
#pragma once

#include <cstdint>

namespace r21d::cuda {

// (name, threads, words in, words out), of a round.
// clang-format off
#define R21D_PROBES(probe)                    \
  probe(indices, 64, 0, 256)                  \
  probe(shared_widths, 32, 128, 384)          \
  probe(global_widths, 32, 128, 256)          \
  probe(static_shared, 64, 64, 192)           \
  probe(cp_async, 32, 320, 256)               \
  probe(sync_threads, 128, 128, 128)          \
  probe(sync_warp, 32, 32, 32)                \
  probe(sync_named, 96, 32, 96)               \
  probe(shuffle, 32, 64, 32)                  \
  probe(shuffle_xor, 32, 32, 160)             \
  probe(shuffle_down, 32, 32, 160)            \
  probe(ballot, 32, 32, 32)                   \
  probe(atomic_shared, 128, 128, 2064)        \
  probe(atomic_global, 128, 128, 2064)        \
  probe(ldmatrix_x4, 32, 160, 128)            \
  probe(ldmatrix_x2, 32, 160, 64)             \
  probe(ldmatrix_x4_transposed, 32, 160, 128) \
  probe(mma_bfloat16, 32, 320, 128)           \
  probe(mma_float16, 32, 320, 128)            \
  probe(pack_bfloat16, 32, 64, 32)            \
  probe(pack_float16, 32, 64, 32)             \
  probe(unpack_bfloat16, 32, 32, 64)          \
  probe(unpack_float16, 32, 32, 64)
// clang-format on

enum class ProbeId : int {
#define R21D_NAME(name, threads, words_in, words_out) name,
  R21D_PROBES(R21D_NAME)
#undef R21D_NAME
};

struct Probe {
  const char* name;
  int threads, words_in, words_out;
};

// By ProbeId.
inline constexpr Probe kProbes[] = {
#define R21D_ROW(name, threads, words_in, words_out) {#name, threads, words_in, words_out},
    R21D_PROBES(R21D_ROW)
#undef R21D_ROW
};

struct ProbeGrid {
  static constexpr int kX = 2;
  static constexpr int kY = 3;
  static constexpr int kZ = 2;
  static constexpr int kBlocks = kX * kY * kZ;
};

inline constexpr int kMostProbeThreads = 128;
inline constexpr int kProbeShared = 4096;  // bytes, dynamic

struct ProbeParams {
  const uint32_t* in;  // rounds × words in
  uint32_t* out;       // rounds × words out, zeros before
  int id;
  int rounds;
};

// How `name` runs on `words` words of input: its parameters without the data.
struct ProbeRun {
  const Probe* probe = nullptr;  // null: there is none of this name
  bool fits = false;             // whether the words are whole rounds
  ProbeParams params{};
};

template <class Text>
ProbeRun probe_run(const Text& name, int64_t words) {
  ProbeRun run;
  int id = 0;
  for (const Probe& probe : kProbes) {
    if (name == probe.name) {
      run.probe = &probe;
      run.params.id = id;
      run.params.rounds =
          probe.words_in == 0 ? ProbeGrid::kBlocks : static_cast<int>(words / probe.words_in);
      run.fits = int64_t{run.params.rounds} * probe.words_in == words;
    }
    ++id;
  }
  return run;
}

}  // namespace r21d::cuda
