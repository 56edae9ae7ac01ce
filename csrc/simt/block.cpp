#include "simt/block.h"

#include <bit>
#include <map>
#include <numeric>
#include <sstream>
#include <utility>

#include "simt/fault.h"

namespace r21d::simt {

Thread* current = nullptr;

namespace {

void leave(Thread& self) {
  self.left = true;
  --self.block->alive;
  ++self.warp->left;
  if (self.warp->arrived > 0) {
    fail(
        "divergent collective",
        site_id(*self.warp->site),
        "leaves the kernel while threads of its warp wait in " +
            std::string(operation_name(self.warp->operation)));
  }
  self.block->barriers.thread_left(*self.block);
}

// Where each fiber begins.
void run_thread() {
  Thread& self = *current;
  Block& block = *self.block;
  try {
    (*block.body)();
    leave(self);
  } catch (...) {
    block.error = std::current_exception();
  }
  self.warp->ready &= ~(1u << self.turn);
  if (block.error) {
    r21d_simt_switch(&self.context, block.scheduler);
  }
  yield(self);
  std::terminate();  // nobody wakes a thread that has left
}

std::string describe_block(ptx::Index3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

}  // namespace

Block::Block(const Launch& block_launch, const Stacks& block_stacks)
    : launch(block_launch),
      stacks(block_stacks),
      options(simt::options()),
      random(options.seed),
      threads(static_cast<size_t>(launch.threads)),
      warps(threads.size() / Warp::kLanes),
      shared(launch.dynamic_shared, launch.shared_limit, static_cast<uint32_t>(launch.threads)) {
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread.id = static_cast<uint32_t>(i);
    thread.now = 1;
    thread.block = this;
    thread.warp = &warps[i / Warp::kLanes];
    thread.lane = static_cast<uint32_t>(i % Warp::kLanes);
  }
  for (size_t i = 0; i < warps.size(); ++i) {
    warps[i].first = &threads[i * Warp::kLanes];
    warps[i].size = Warp::kLanes;
  }
}

void Block::begin() {
  const auto known = std::make_shared<const std::vector<uint32_t>>(threads.size());
  uint32_t clock = 0;
  for (const Thread& thread : threads) {
    clock = std::max(clock, thread.now);
  }
  for (Thread& thread : threads) {
    thread.now = thread.begin = clock + 1;
    thread.known = known;
    thread.left = false;
    thread.waits_at = nullptr;
    thread.context = stacks.prepare(static_cast<int>(thread.id), run_thread);
  }
  for (Warp& warp : warps) {
    uint32_t turns[Warp::kLanes];
    std::iota(std::begin(turns), std::end(turns), 0);
    if (options.order == Order::kShuffled) {
      random.shuffle(turns);
    } else if (options.order == Order::kReversed) {
      std::reverse(std::begin(turns), std::end(turns));
    }
    for (uint32_t lane = 0; lane < Warp::kLanes; ++lane) {
      warp.first[lane].turn = turns[lane];
      warp.in_turn[turns[lane]] = &warp.first[lane];
    }
    warp.ready = ~uint32_t{0};
    warp.left = 0;
  }
  alive = static_cast<uint32_t>(threads.size());
  barriers = {};
  shared.begin_block();
}

void Block::run(ptx::Index3 block_index, const std::function<void()>& kernel) {
  index = block_index;
  body = &kernel;
  begin();
  std::vector<Warp*> order(warps.size());
  for (size_t i = 0; i < warps.size(); ++i) {
    const bool reversed = options.order == Order::kReversed;
    order[i] = &warps[reversed ? warps.size() - 1 - i : i];
  }
  while (alive > 0) {
    if (options.order == Order::kShuffled) {
      random.shuffle(order);
    }
    bool went_on = false;
    for (Warp* warp : order) {
      if (warp->ready == 0) {
        continue;
      }
      went_on = true;
      current = warp->in_turn[std::countr_zero(warp->ready)];
      r21d_simt_switch(&scheduler, current->context);
      if (error) {
        std::rethrow_exception(std::exchange(error, nullptr));
      }
    }
    if (!went_on) {
      report_deadlock();
    }
  }
  for (Thread& thread : threads) {
    thread.copies.finish(*this);
  }
}

void Block::report_deadlock() const {
  // Threads by what they wait for; the first divergent warp decides what it is called.
  std::map<std::string, std::vector<uint32_t>> waiting;
  const Thread* first = nullptr;
  for (const Thread& thread : threads) {
    std::string where = "have left the kernel";
    if (!thread.left) {
      where = std::string("wait in ") + operation_name(thread.waits_in) + " at " +
              site_id(*thread.waits_at);
      first = first == nullptr ? &thread : first;
    }
    waiting[where].push_back(thread.id);
  }
  const char* kind = "deadlock";
  for (const Warp& warp : warps) {
    if (warp.arrived > 0) {
      kind = "divergent collective";
      first = warp.first;
      while (first->left || first->waits_in != warp.operation) {
        ++first;
      }
      break;
    }
  }
  std::ostringstream message;
  message << "no thread can go on";
  const char* separator = ": ";
  for (const auto& [where, ids] : waiting) {
    message << separator << "threads";
    separator = "; ";
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t begin = i;
      while (i + 1 < ids.size() && ids[i + 1] == ids[i] + 1) {
        ++i;
      }
      message << ' ' << ids[begin];
      if (i > begin) {
        message << '-' << ids[i];
      }
    }
    message << ' ' << where;
  }
  fail(*first, kind, site_id(*first->waits_at), message.str());
}

void fail(const char* kind, const std::string& site, const std::string& message) {
  fail(*current, kind, site, message);
}

void fail(
    const Thread& thread, const char* kind, const std::string& site, const std::string& message) {
  throw Fault(
      kind,
      thread.block->launch.kernel,
      describe_block(thread.block->index),
      static_cast<int>(thread.id),
      site,
      message);
}

std::string describe(const Thread& now, const Conflict& conflict) {
  const bool here = conflict.actor < now.block->threads.size() && conflict.clock >= now.begin;
  const std::string who =
      here ? "thread " + std::to_string(conflict.actor) : "a thread of another block";
  switch (conflict.kind) {
    case Conflict::Kind::kRead:
      return who + " read, with no barrier in between";
    case Conflict::Kind::kWrite:
      return who + " wrote at " + place(conflict.where) + ", with no barrier in between";
    case Conflict::Kind::kAtomic:
      return who + " added to, with no barrier in between";
    case Conflict::Kind::kAsyncCopy:
      break;
  }
  return who + " is still copying to, from " + place(conflict.where);
}

}  // namespace r21d::simt
