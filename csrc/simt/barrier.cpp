#include "simt/barrier.h"

#include <string>

#include "simt/block.h"

namespace r21d::simt {

void Barriers::sync_threads(const SiteRecord& site) {
  Thread& self = *current;
  // The instruction is one of whole warps (barrier.sync.aligned).
  Warp& warp = *self.warp;
  if (warp.barrier_site != nullptr && warp.barrier_site != &site) {
    fail(
        "divergent barrier",
        site_id(site),
        "sync_threads, while threads of the same warp wait in that of " +
            site_id(*warp.barrier_site));
  }
  warp.barrier_site = &site;
  Barrier& barrier = barriers_[0];
  barrier.join.add(self);
  barrier.waiting.push_back(&self);
  ++barrier.arrived;
  if (barrier.arrived == self.block->alive) {
    complete(barrier);
  } else {
    wait_in(Operation::kSyncThreads, site);
  }
}

void Barriers::thread_left(Block& block) {
  Barrier& barrier = barriers_[0];
  if (barrier.arrived > 0 && barrier.arrived == block.alive) {
    complete(barrier);
  }
}

Barriers::Barrier& Barriers::come(const SiteRecord& site, int id, int threads) {
  Thread& self = *current;
  const auto all = static_cast<int>(self.block->threads.size());
  if (id < 1 || id > 15) {
    fail(
        "invalid barrier",
        site_id(site),
        "id " + std::to_string(id) + " is not one of 1 to 15; 0 is that of sync_threads");
  }
  if (threads < Warp::kLanes || threads % Warp::kLanes != 0 || threads > all) {
    fail(
        "invalid barrier",
        site_id(site),
        std::to_string(threads) + " threads are not whole warps of a block of " +
            std::to_string(all));
  }
  Barrier& barrier = barriers_[static_cast<size_t>(id)];
  if (barrier.arrived == 0) {
    barrier.threads = static_cast<uint32_t>(threads);
  } else if (barrier.threads != static_cast<uint32_t>(threads)) {
    fail(
        "invalid barrier",
        site_id(site),
        "barrier " + std::to_string(id) + " of " + std::to_string(threads) +
            " threads, where others came to it with " + std::to_string(barrier.threads));
  }
  barrier.join.add(self);
  ++barrier.arrived;
  return barrier;
}

void Barriers::sync(const SiteRecord& site, int id, int threads) {
  Barrier& barrier = come(site, id, threads);
  barrier.waiting.push_back(current);
  if (barrier.arrived == barrier.threads) {
    complete(barrier);
  } else {
    wait_in(Operation::kSyncNamed, site);
  }
}

void Barriers::arrive(const SiteRecord& site, int id, int threads) {
  Barrier& barrier = come(site, id, threads);
  if (barrier.arrived == barrier.threads) {
    complete(barrier);
  }
}

void Barriers::complete(Barrier& barrier) {
  const Knowledge known = barrier.join.take();
  for (Thread* thread : barrier.waiting) {
    thread->known = known;
    if (&barrier == &barriers_[0]) {
      thread->warp->barrier_site = nullptr;
    }
    wake(*thread);
  }
  barrier.waiting.clear();
  barrier.arrived = 0;
}

}  // namespace r21d::simt
