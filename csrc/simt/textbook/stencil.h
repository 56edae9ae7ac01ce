// y[i] = x[i - 1] + x[i] + x[i + 1] with zeros outside; each block holds its values and a halo of
// one on each side.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kStencilThreads = 128;

struct Stencil {
  const float* x;
  float* y;
  int size;
  Bug bug;
};

R21D_KERNEL(kStencilThreads, 1) stencil_kernel(const Stencil p) {
  const ptx::Address band = ptx::dynamic_shared();  // of kStencilThreads + 2 values
  const int thread = static_cast<int>(ptx::thread_index());
  const int first = static_cast<int>(ptx::block_index().x) * kStencilThreads;
  const int width = kStencilThreads + (p.bug == Bug::narrow_halo ? 1 : 2);
  const int lowest = p.bug == Bug::halo_outside ? -1 : 0;
  for (int slot = thread; slot < width; slot += kStencilThreads) {
    const int i = first + slot - 1;
    const bool inside = i >= lowest && ptx::below(R21D_SITE("input"), i, p.size);
    ptx::store_shared(
        band + 4 * static_cast<ptx::Address>(slot), inside ? ptx::load_global(p.x + i) : 0.0f);
  }
  if (p.bug != Bug::missing_barrier) {
    ptx::sync_threads(R21D_SITE("band loaded"));
  }
  if (ptx::below(R21D_SITE("output"), first + thread, p.size)) {
    float sum = 0.0f;
    for (int tap = 0; tap < 3; ++tap) {
      sum += ptx::load_shared<float>(band + 4 * static_cast<ptx::Address>(thread + tap));
    }
    ptx::store_global(p.y + first + thread, sum);
  }
}

}  // namespace r21d::simt::textbook
