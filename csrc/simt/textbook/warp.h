// Within a warp: values rotated by one lane through shared memory, ordered by sync_warp alone.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kRotateThreads = 64;

struct Rotate {
  const float* x;
  float* y;
  int rounds;
  Bug bug;
};

R21D_KERNEL(kRotateThreads, 1) rotate_kernel(const Rotate p) {
  R21D_STATIC_SHARED(slots, 4 * kRotateThreads);
  const int thread = static_cast<int>(ptx::thread_index());
  const int neighbour = thread / 32 * 32 + (thread + 1) % 32;
  float value = ptx::load_global(p.x + thread);
  for (int round = 0; round < p.rounds; ++round) {
    ptx::store_shared(slots + 4 * static_cast<ptx::Address>(thread), value);
    if (p.bug != Bug::missing_barrier) {
      ptx::sync_warp(R21D_SITE("values written"));
    }
    value = ptx::load_shared<float>(slots + 4 * static_cast<ptx::Address>(neighbour));
    if (p.bug != Bug::missing_barrier_before_reuse) {
      ptx::sync_warp(R21D_SITE("values read"));
    }
  }
  ptx::store_global(p.y + thread, value);
}

}  // namespace r21d::simt::textbook
