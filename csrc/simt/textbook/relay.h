// What one warp writes, another is told of by a third: order is passed on. A fourth warp leaves at
// once, and the barrier of all threads does without it.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kRelayThreads = 128;

struct Relay {
  const float* x;  // 32 a block
  float* y;        // the same, reversed
  Bug bug;
};

R21D_KERNEL(kRelayThreads, 1) relay_kernel(const Relay p) {
  R21D_STATIC_SHARED(values, 4 * 32);
  const int warp = static_cast<int>(ptx::thread_index()) / 32;
  const int lane = static_cast<int>(ptx::thread_index()) % 32;
  const int i = static_cast<int>(ptx::block_index().x) * 32 + lane;
  if (warp == 3) {
    return;
  }
  if (warp == 2) {
    ptx::store_shared(values + 4 * static_cast<ptx::Address>(lane), 0.0f);
  }
  ptx::sync_threads(R21D_SITE("values cleared"));
  if (warp == 0) {
    ptx::store_shared(values + 4 * static_cast<ptx::Address>(lane), ptx::load_global(p.x + i));
    ptx::arrive_named(R21D_SITE("values written"), 1, 64);
  } else if (warp == 1) {
    if (p.bug != Bug::missing_barrier) {
      ptx::sync_named(R21D_SITE("values are there"), 1, 64);
    }
    ptx::arrive_named(R21D_SITE("passed on"), 2, 64);
  } else {
    ptx::sync_named(R21D_SITE("told"), 2, 64);
    const ptx::Address opposite = values + 4 * static_cast<ptx::Address>(31 - lane);
    ptx::store_global(p.y + i, ptx::load_shared<float>(opposite));
  }
}

}  // namespace r21d::simt::textbook
