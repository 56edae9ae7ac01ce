// Slots of a thread's own beside those of others, which need no barrier; then the neighbours'.
#pragma once

#include "cuda/ptx.cuh"

namespace r21d::simt::textbook {

inline constexpr int kSlotThreads = 64;

// y[i] = 3 · x[i] + (x[i] of the thread opposite); x and y of kSlotThreads values.
R21D_KERNEL(kSlotThreads, 1) slots_kernel(const uint16_t* x, uint32_t* y) {
  R21D_STATIC_SHARED(halves, 2 * kSlotThreads);
  R21D_STATIC_SHARED(words, 4 * kSlotThreads);
  const ptx::Address thread = ptx::thread_index();
  const ptx::Address half = halves + 2 * thread;
  const ptx::Address word = words + 4 * thread;
  const uint16_t value = ptx::load_global(x + thread);
  ptx::store_shared(word, uint32_t{0});
  for (int i = 0; i < 3; ++i) {
    ptx::store_shared(half, value);
    ptx::store_shared(word, ptx::load_shared<uint32_t>(word) + ptx::load_shared<uint16_t>(half));
  }
  ptx::sync_threads(R21D_SITE("all slots written"));
  const ptx::Address opposite = kSlotThreads - 1 - thread;
  const ptx::Vec4 four = ptx::load_shared<ptx::Vec4>(words + 16 * (thread / 4));
  const uint32_t other = ptx::load_shared<uint16_t>(halves + 2 * opposite);
  ptx::store_global(y + thread, four.x[thread % 4] + other);
  ptx::sync_threads(R21D_SITE("all slots read"));
  ptx::store_shared(word, uint32_t{0});
}

}  // namespace r21d::simt::textbook
