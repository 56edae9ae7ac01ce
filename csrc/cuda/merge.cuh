// The channels' sums of many tiles to those of one for every kMergeEntries of them. Run again until
// one is left; the order of the sums depends on nothing but their number.
#pragma once

#include "cuda/channel_sums.cuh"

namespace r21d::cuda {

R21D_KERNEL(kMergeThreads, 1)
merge_kernel(const MergeParams p) {
  constexpr int kGroups = kMergeThreads / kMergeColumns;
  constexpr int kEntries = kMergeEntries / kGroups;  // of a thread
  R21D_STATIC_SHARED(merged, kMergeThreads * 8);
  const int thread = static_cast<int>(ptx::thread_index());
  const int group = thread / kMergeColumns;
  const int column =
      static_cast<int>(ptx::block_index().y) * kMergeColumns + thread % kMergeColumns;
  const int first_entry = static_cast<int>(ptx::block_index().x) * kMergeEntries;
  // Values of `entries` entries from `entry` on.
  const auto values_of = [&](int entry, int entries) -> int64_t {
    const int64_t rest = p.all_values - entry * p.values;
    return rest < 0 ? 0 : rest < entries * p.values ? rest : entries * p.values;
  };

  const bool wanted = ptx::below(R21D_SITE("merge: columns"), column, p.columns);
  const int mine = first_entry + group * kEntries;
  const int left = p.entries - mine;
  const int entries = left < 0 ? 0 : left < kEntries ? left : kEntries;
  Merged own{0.0f, 0.0f};
  if (wanted && entries > 0) {
    own = merge_column(
        p.kind,
        entries,
        [&](int g) { return values_of(mine + g, 1); },
        [&](int g, int which) {
          const int64_t place = int64_t{mine + g} * p.columns + column;
          return ptx::load_global((which == 0 ? p.first : p.second) + place);
        });
  }
  ptx::store_shared(merged + thread * 8, own.first);
  ptx::store_shared(merged + thread * 8 + 4, own.second);
  ptx::sync_threads(R21D_SITE("merge: all groups are written"));
  if (group > 0 || !wanted) {
    return;
  }
  const Merged all = merge_column(
      p.kind,
      kGroups,
      [&](int g) { return values_of(first_entry + g * kEntries, kEntries); },
      [&](int g, int which) {
        return ptx::load_shared<float>(merged + ((g * kMergeColumns + thread) * 2 + which) * 4);
      });
  const int64_t place = int64_t{ptx::block_index().x} * p.columns + column;
  ptx::store_global(p.merged_first + place, all.first);
  ptx::store_global(p.merged_second + place, all.second);
}

}  // namespace r21d::cuda
