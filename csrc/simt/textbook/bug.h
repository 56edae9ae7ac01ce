// The bugs that can be planted in the textbook kernels, one at a time, to see them found.
#pragma once

namespace r21d::simt::textbook {

#define R21D_BUGS(bug)                                                                             \
  bug(none) bug(missing_barrier) bug(missing_barrier_before_reuse) bug(missing_wait)               \
      bug(wait_one_too_late) bug(missing_commit) bug(wrong_swizzle) bug(narrow_halo)               \
          bug(halo_outside) bug(store_outside) bug(store_to_input) bug(read_output)                \
              bug(write_what_was_read) bug(misaligned) bug(misaligned_input)                       \
                  bug(divergent_shuffle) bug(skipped_shuffle) bug(early_exit) bug(late_after_exit) \
                      bug(divergent_barrier) bug(wrong_count) bug(different_counts)                \
                          bug(half_a_warp) bug(missing_arrival) bug(unordered_writes)              \
                              bug(shared_by_blocks) bug(uninitialised) bug(not_atomic)

enum class Bug {
#define R21D_NAME(name) name,
  R21D_BUGS(R21D_NAME)
#undef R21D_NAME
};

}  // namespace r21d::simt::textbook
