// Sums of columns, whose rows stream through a ring of two stages by asynchronous copies. Each
// thread sums columns that others have copied.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kPipelineThreads = 64;
inline constexpr int kPipelineStages = 2;
inline constexpr int kPipelineColumns = 4 * kPipelineThreads;  // of a block: 16 bytes a thread
inline constexpr int kPipelineRowBytes = 4 * kPipelineColumns;

struct Pipeline {
  const float* x;  // rows × kPipelineColumns
  float* sums;     // kPipelineColumns
  int rows;
  Bug bug;
};

R21D_KERNEL(kPipelineThreads, 1) pipeline_kernel(const Pipeline p) {
  const ptx::Address ring = ptx::dynamic_shared();
  const int thread = static_cast<int>(ptx::thread_index());
  const auto load_row = [&](int row) {
    const int stage = ptx::stage(R21D_SITE("stage loaded"), row % kPipelineStages, kPipelineStages);
    const bool wanted = ptx::below(R21D_SITE("rows"), row, p.rows);
    const int misplaced = p.bug == Bug::misaligned ? 8 : 0;
    const int unaligned = p.bug == Bug::misaligned_input ? 1 : 0;
    ptx::cp_async16(
        ring + static_cast<ptx::Address>(stage * kPipelineRowBytes + 16 * thread + misplaced),
        p.x + row * kPipelineColumns + 4 * thread + unaligned,
        wanted);
    if (p.bug != Bug::missing_commit) {
      ptx::cp_async_commit(R21D_SITE("row issued"));
    }
  };
  load_row(0);
  float sum[4] = {};
  for (int row = 0; row < p.rows; ++row) {
    load_row(row + 1);
    if (p.bug == Bug::wait_one_too_late) {
      ptx::cp_async_wait<kPipelineStages>(R21D_SITE("row landed, too late"));
    } else if (p.bug != Bug::missing_wait) {
      ptx::cp_async_wait<kPipelineStages - 1>(R21D_SITE("row landed"));
    }
    if (p.bug != Bug::missing_barrier) {
      ptx::sync_threads(R21D_SITE("row visible"));
    }
    const int stage = ptx::stage(R21D_SITE("stage used"), row % kPipelineStages, kPipelineStages);
    for (int i = 0; i < 4; ++i) {
      const int column = thread + i * kPipelineThreads;
      sum[i] += ptx::load_shared<float>(
          ring + static_cast<ptx::Address>(stage * kPipelineRowBytes + 4 * column));
    }
    if (p.bug != Bug::missing_barrier_before_reuse) {
      ptx::sync_threads(R21D_SITE("row used"));
    }
  }
  for (int i = 0; i < 4; ++i) {
    ptx::store_global(p.sums + thread + i * kPipelineThreads, sum[i]);
  }
}

}  // namespace r21d::simt::textbook
