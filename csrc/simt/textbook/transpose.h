// The transpose of a matrix, by tiles in shared memory; rows of the tile are padded by one value.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kTransposeTile = 32;
inline constexpr int kTransposeThreads = 256;

struct Transpose {
  const float* x;  // rows × columns
  float* y;        // columns × rows
  int rows, columns;
  Bug bug;
};

R21D_KERNEL(kTransposeThreads, 1) transpose_kernel(const Transpose p) {
  const ptx::Address tile = ptx::dynamic_shared();
  const int thread = static_cast<int>(ptx::thread_index());
  const int lane = thread % 32;
  const int row = static_cast<int>(ptx::block_index().y) * kTransposeTile;
  const int column = static_cast<int>(ptx::block_index().x) * kTransposeTile;
  const auto slot = [&](int r, int c) {
    return tile + 4 * static_cast<ptx::Address>(r * (kTransposeTile + 1) + c);
  };
  for (int r = thread / 32; r < kTransposeTile; r += kTransposeThreads / 32) {
    if (ptx::below(R21D_SITE("input rows"), row + r, p.rows) &&
        ptx::below(R21D_SITE("input columns"), column + lane, p.columns)) {
      const int i = (row + r) * p.columns + column + lane;
      ptx::store_shared(slot(r, lane), ptx::load_global(p.x + i));
    }
  }
  if (p.bug == Bug::divergent_barrier && lane < 16) {
    ptx::sync_threads(R21D_SITE("tile loaded, half a warp"));
  } else if (p.bug != Bug::missing_barrier) {
    ptx::sync_threads(R21D_SITE("tile loaded"));
  }
  const int height = p.bug == Bug::store_outside ? p.columns + 1 : p.columns;
  for (int c = thread / 32; c < kTransposeTile; c += kTransposeThreads / 32) {
    if (ptx::below(R21D_SITE("output rows"), column + c, height) &&
        ptx::below(R21D_SITE("output columns"), row + lane, p.rows)) {
      const int i = (column + c) * p.rows + row + lane;
      ptx::store_global(p.y + i, ptx::load_shared<float>(slot(lane, c)));
    }
  }
}

}  // namespace r21d::simt::textbook
