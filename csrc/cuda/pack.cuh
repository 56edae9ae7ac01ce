// Rows with an inner axis of any stride into rows that the other kernels read in 16-byte chunks:
// weights as (output, tap, channel), and x with more channels.
#pragma once

#include "cuda/tile.cuh"

namespace r21d::cuda {

R21D_KERNEL(kPackThreads, 1)
pack_kernel(const PackParams p) {
  const int64_t values = int64_t{p.outer} * p.length;
  const int64_t step = int64_t{ptx::grid_size().x} * kPackThreads;
  int64_t index = int64_t{ptx::block_index().x} * kPackThreads + ptx::thread_index();
  for (; index < values; index += step) {
    const int64_t row = index / p.length;
    const int rest = static_cast<int>(index - row * p.length);
    const int tap = rest / p.padded;
    const int k = rest - tap * p.padded;
    uint16_t value = 0;
    if (ptx::below(R21D_SITE("pack: values of a row"), k, p.inner) &&
        ptx::below(R21D_SITE("pack: rows of the kernel"), tap / p.cols, p.rows)) {
      const int64_t place = row * p.stride_outer + tap / p.cols * p.stride_row +
                            tap % p.cols * p.stride_col + k * p.stride_inner;
      value = ptx::load_global(static_cast<const uint16_t*>(p.in) + place);
    }
    ptx::store_global(static_cast<uint16_t*>(p.out) + index, value);
  }
}

}  // namespace r21d::cuda
