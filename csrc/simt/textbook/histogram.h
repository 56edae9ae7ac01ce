// Counts by atomics: in shared memory, then of all blocks in global memory.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kHistogramThreads = 96;
inline constexpr int kHistogramBins = 40;

struct Histogram {
  const uint32_t* x;  // each below kHistogramBins
  uint32_t* counts;
  int size;  // of a block
  Bug bug;
};

R21D_KERNEL(kHistogramThreads, 1) histogram_kernel(const Histogram p) {
  R21D_STATIC_SHARED(bins, 4 * kHistogramBins);
  const int thread = static_cast<int>(ptx::thread_index());
  const int block = static_cast<int>(ptx::block_index().x);
  const auto bin_of = [&](int i) { return bins + 4 * static_cast<ptx::Address>(i); };
  if (thread < kHistogramBins) {
    ptx::store_shared(bin_of(thread), uint32_t{0});
  }
  if (p.bug != Bug::missing_barrier) {
    ptx::sync_threads(R21D_SITE("bins cleared"));
  }
  for (int i = thread; ptx::below(R21D_SITE("values"), i, p.size); i += kHistogramThreads) {
    const auto bin = static_cast<int>(ptx::load_global(p.x + block * p.size + i));
    if (p.bug == Bug::not_atomic) {
      ptx::store_shared(bin_of(bin), ptx::load_shared<uint32_t>(bin_of(bin)) + 1);
    } else {
      ptx::atomic_add_shared(bin_of(bin), uint32_t{1});
    }
  }
  ptx::sync_threads(R21D_SITE("values counted"));
  if (thread < kHistogramBins) {
    ptx::atomic_add_global(p.counts + thread, ptx::load_shared<uint32_t>(bin_of(thread)));
  }
}

}  // namespace r21d::simt::textbook
