// Sums: shuffles within a warp, shared memory between warps.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kReduceThreads = 256;

struct Reduce {
  float* x;     // never written
  float* sums;  // one a block
  int size;     // values of each block
  Bug bug;
};

R21D_DEVICE float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += ptx::shuffle_down(R21D_SITE("warp sum"), value, offset);
  }
  return value;
}

R21D_KERNEL(kReduceThreads, 1) reduce_kernel(const Reduce p) {
  R21D_STATIC_SHARED(partial, 4 * kReduceThreads / 32);
  const int thread = static_cast<int>(ptx::thread_index());
  const int block = static_cast<int>(ptx::block_index().x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  float sum = 0.0f;
  for (int i = thread; ptx::below(R21D_SITE("end of the block"), i, p.size); i += kReduceThreads) {
    sum += ptx::load_global<float>(p.x + block * p.size + i);
  }
  if (p.bug == Bug::divergent_shuffle && lane >= 16) {
    sum = ptx::shuffle(R21D_SITE("other shuffle"), sum, 0);
  }
  if (p.bug == Bug::early_exit && lane == 7) {
    return;
  }
  if (p.bug == Bug::late_after_exit && lane == 0) {
    return;
  }
  if (p.bug != Bug::skipped_shuffle || lane < 16) {
    sum = warp_sum(sum);
  }
  const bool uninitialised = p.bug == Bug::uninitialised && warp == 3;
  if (lane == 0 && !uninitialised) {
    const int slot = p.bug == Bug::store_outside ? warp + 1 : warp;
    ptx::store_shared(partial + 4 * slot, sum);
  }
  if (p.bug != Bug::missing_barrier) {
    ptx::sync_threads(R21D_SITE("partial sums written"));
  }
  if (p.bug == Bug::unordered_writes) {
    ptx::store_global(p.sums + block, ptx::load_shared<float>(partial));
  }
  if (warp == 0) {
    sum = lane < kReduceThreads / 32 ? ptx::load_shared<float>(partial + 4 * lane) : 0.0f;
    sum = warp_sum(sum);
    if (p.bug == Bug::read_output && lane == 0 && block > 0) {
      sum += ptx::load_global<float>(p.sums + block - 1);
    }
    if (p.bug == Bug::write_what_was_read && lane == 0) {
      sum += ptx::load_global<float>(p.sums + block);
    }
    if (lane == 0) {
      if (p.bug == Bug::store_to_input) {
        ptx::store_global(p.x + block * p.size, sum);
      }
      ptx::store_global(p.sums + (p.bug == Bug::shared_by_blocks ? 0 : block), sum);
    }
  }
}

}  // namespace r21d::simt::textbook
