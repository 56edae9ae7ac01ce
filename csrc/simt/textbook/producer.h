// Warps with different work: the first half of the block squares values into a ring of slots, the
// second half takes them out; two named barriers a slot tell that it is full and that it is empty.
#pragma once

#include "cuda/ptx.cuh"
#include "simt/textbook/bug.h"

namespace r21d::simt::textbook {

inline constexpr int kProducerThreads = 128;
inline constexpr int kProducerHalf = kProducerThreads / 2;
inline constexpr int kProducerSlots = 2;

struct Producer {
  const float* x;  // rounds × kProducerHalf
  float* y;        // the same, each row reversed
  int rounds;
  Bug bug;
};

R21D_KERNEL(kProducerThreads, 1) producer_kernel(const Producer p) {
  R21D_STATIC_SHARED(ring, 4 * kProducerHalf * kProducerSlots);
  const int thread = static_cast<int>(ptx::thread_index());
  const bool produces = thread < kProducerHalf;
  const int index = thread % kProducerHalf;
  const auto slot_of = [&](int round, int i) {
    const int slot = round % kProducerSlots * kProducerHalf + i;
    return ring + 4 * static_cast<ptx::Address>(slot);
  };
  const auto full = [](int round) { return 1 + round % kProducerSlots; };
  const auto empty = [](int round) { return 1 + kProducerSlots + round % kProducerSlots; };
  const int arriving = p.bug == Bug::wrong_count ? kProducerThreads - 32 : kProducerThreads;
  const int waiting = p.bug == Bug::different_counts ? kProducerThreads - 32
                      : p.bug == Bug::half_a_warp    ? kProducerThreads - 16
                                                     : arriving;
  for (int round = 0; round < p.rounds; ++round) {
    const int i = round * kProducerHalf + index;
    if (produces) {
      if (round >= kProducerSlots) {
        ptx::sync_named(R21D_SITE("slot empty"), empty(round), kProducerThreads);
      }
      const float x = ptx::load_global(p.x + i);
      ptx::store_shared(slot_of(round, index), x * x);
      if (p.bug != Bug::missing_arrival) {
        ptx::arrive_named(R21D_SITE("slot filled"), full(round), arriving);
      }
    } else {
      if (p.bug != Bug::missing_barrier) {
        ptx::sync_named(R21D_SITE("slot full"), full(round), waiting);
      }
      ptx::store_global(
          p.y + i, ptx::load_shared<float>(slot_of(round, kProducerHalf - 1 - index)));
      if (round + kProducerSlots < p.rounds) {
        ptx::arrive_named(R21D_SITE("slot emptied"), empty(round), kProducerThreads);
      }
    }
  }
}

}  // namespace r21d::simt::textbook
