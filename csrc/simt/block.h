// A block of CUDA threads on the host: a fiber a thread, run one at a time until all have left.
//
// Where Hopper's instructions will hook in:
//  - mbarrier: a barrier with phases beside those of barrier.h; its arrivals and completions join
//    clocks (clock.h) as the others do.
//  - TMA: an Actor of its own that issues and lands copies through AsyncCopies (async.h), and whose
//    completion arrives at an mbarrier. Shadow counts it as one more actor.
//  - wgmma: a collective (collectives.h) of a Group of 128 threads instead of 32.
//  - clusters: several Blocks alive at a time. A thread reaches its own through Thread::block; what
//    runs them all is run() in launch.cpp.
#pragma once

#include <bit>
#include <cstdint>
#include <exception>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "simt/async.h"
#include "simt/barrier.h"
#include "simt/clock.h"
#include "simt/fiber.h"
#include "simt/group.h"
#include "simt/launch.h"
#include "simt/options.h"
#include "simt/random.h"
#include "simt/shared_memory.h"
#include "simt/site.h"

namespace r21d::simt {

struct Block;
struct Warp;

struct Thread : Actor {
  Block* block;
  Warp* warp;
  uint32_t lane;
  uint32_t turn;  // within its warp
  Context context;
  AsyncCopies copies;
  // What it waits in, and where; null while it can go on.
  const SiteRecord* waits_at = nullptr;
  Operation waits_in{};
  bool left = false;
};

// 32 threads. They run one after the other, in their turns, until none can go on.
struct Warp : Group {
  static constexpr int kLanes = 32;

  Thread* in_turn[kLanes];
  uint32_t ready = 0;  // by turn
  // Where its threads wait in sync_threads: all at one place.
  const SiteRecord* barrier_site = nullptr;
  Exchange exchange;
};

struct Block {
  Block(const Launch&, const Stacks&);

  // Runs `body` in each thread. Throws Fault, or what `body` threw.
  void run(ptx::Index3 block_index, const std::function<void()>& body);

  const Launch& launch;
  const Stacks& stacks;
  Options options;
  Random random;
  ptx::Index3 index{};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barriers barriers;
  SharedMemory shared;
  uint32_t alive = 0;
  Context scheduler = nullptr;
  std::exception_ptr error;
  const std::function<void()>* body = nullptr;

 private:
  void begin();
  [[noreturn]] void report_deadlock() const;
};

// The thread that runs.
extern Thread* current;

// The warp's next thread that is ready, after the turn of `thread`; null where there is none.
[[gnu::always_inline]] inline Thread* next_ready(const Thread& thread) {
  const uint32_t ready = thread.warp->ready;
  const uint32_t after = ready & (~uint32_t{1} << thread.turn);
  if (ready == 0) {
    return nullptr;
  }
  return thread.warp->in_turn[std::countr_zero(after != 0 ? after : ready)];
}

// Suspends `self`, which is not ready, in favour of its warp or else of the scheduler.
[[gnu::always_inline]] inline void yield(Thread& self) {
  Thread* next = next_ready(self);
  if (next == nullptr) {
    r21d_simt_switch(&self.context, self.block->scheduler);
  } else {
    current = next;
    r21d_simt_switch(&self.context, next->context);
  }
}

// Lets others run until the current thread is ready again.
[[gnu::always_inline]] inline void wait_in(Operation operation, const SiteRecord& site) {
  Thread& self = *current;
  self.waits_in = operation;
  self.waits_at = &site;
  self.warp->ready &= ~(1u << self.turn);
  yield(self);
}

// Makes a thread ready.
inline void wake(Thread& thread) {
  thread.warp->ready |= 1u << thread.turn;
}

// Throws Fault for the current thread, or for `thread`.
[[noreturn]] void fail(const char* kind, const std::string& site, const std::string& message);
[[noreturn]] void fail(
    const Thread& thread, const char* kind, const std::string& site, const std::string& message);

// "thread 5 wrote at file:line ...": the access that the current thread's is not ordered after.
std::string describe(const Thread& now, const Conflict&);

}  // namespace r21d::simt
