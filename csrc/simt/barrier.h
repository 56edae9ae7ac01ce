// The barriers of a block: 0 is __syncthreads, 1 to 15 are the named ones.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "simt/clock.h"
#include "simt/site.h"

namespace r21d::simt {

struct Block;
struct Thread;

class Barriers {
 public:
  // The current thread comes to barrier 0 of all threads that have not left.
  void sync_threads(const SiteRecord&);

  // The current thread comes to a barrier of `threads` threads and waits, or only arrives.
  void sync(const SiteRecord&, int id, int threads);
  void arrive(const SiteRecord&, int id, int threads);

  // A thread has left the kernel: the others may have waited for it alone.
  void thread_left(Block&);

 private:
  struct Barrier {
    uint32_t arrived = 0;
    uint32_t threads = 0;  // expected
    Join join;
    std::vector<Thread*> waiting;
  };

  Barrier& come(const SiteRecord&, int id, int threads);
  void complete(Barrier&);

  std::array<Barrier, 16> barriers_;
};

}  // namespace r21d::simt
