#include "simt/shadow.h"

namespace r21d::simt {

Shadow::Shadow(size_t bytes, uint32_t actors)
    : actors_(actors),
      writes_((bytes + kCellBytes - 1) / kCellBytes),
      written_from_(writes_.size()),
      reads_(writes_.size(), actors) {
}

const Conflict* Shadow::write(
    const Actor& actor, size_t offset, size_t bytes, const std::source_location& where) {
  const size_t cell = offset / kCellBytes;
  const uint32_t granules = granules_of(offset, bytes);
  const Conflict* found = check_writes(actor, cell, granules);
  if (found == nullptr) {
    found = check_reads(actor, cell, granules);
  }
  if (found == nullptr) {
    remember_write(actor, cell, granules, where);
  }
  return found;
}

const Conflict* Shadow::atomic(const Actor& actor, size_t offset) {
  const size_t cell = offset / kCellBytes;
  const uint32_t granules = granules_of(offset, 4);
  if (const Conflict* found = check_flagged(actor, cell, granules, /*atomics=*/false)) {
    return found;
  }
  if (const Conflict* found = check_reads(actor, cell, granules)) {
    return found;
  }
  uninitialised_reads_ += written_granules(cell, granules) == 0;
  writes_[cell] |= kAtomics;
  Atomics& clocks = atomics_.try_emplace(offset / 4, actors_ + 1).first->second;
  if (clocks[actor.id] != 0 && clocks[actor.id] < actor.begin) {
    clocks[actors_] = clocks[actor.id];
  }
  clocks[actor.id] = actor.now;
  return nullptr;
}

const Conflict* Shadow::begin_copy(
    const Actor& actor, size_t offset, const std::source_location& where) {
  const Conflict* found = write(actor, offset, kCellBytes, where);
  if (found == nullptr) {
    writes_[offset / kCellBytes] |= kInFlight;
  }
  return found;
}

void Shadow::end_copy(const Actor& actor, size_t offset) {
  writes_[offset / kCellBytes] = epoch(actor);
}

uint32_t Shadow::written_in_split(size_t cell, uint32_t granules) const {
  const Split& split = splits_[clock_of(writes_[cell])];
  uint32_t written = 0;
  for (int i = 0; i < kGranules; ++i) {
    written |= split.granule[i] != 0 ? 1u << i : 0;
  }
  return written & granules;
}

void Shadow::clear() {
  std::fill(writes_.begin(), writes_.end(), 0);
  reads_.clear();
  splits_.clear();
  free_splits_.clear();
  atomics_.clear();
}

const Conflict* Shadow::conflict(Conflict::Kind kind, uint32_t actor, uint32_t clock, size_t cell) {
  conflict_ = {kind, actor, clock, written_from_[cell]};
  return &conflict_;
}

const Conflict* Shadow::check_flagged(
    const Actor& actor, size_t cell, uint32_t granules, bool atomics) {
  const Write last = writes_[cell];
  if ((last & kInFlight) != 0) {
    return conflict(Conflict::Kind::kAsyncCopy, actor_of(last), clock_of(last), cell);
  }
  for (int i = 0; i < kGranules; ++i) {
    const Write write = (last & kSplit) != 0 ? splits_[clock_of(last)].granule[i] : last & ~kFlags;
    if ((granules >> i & 1u) != 0 && !follows(actor, write)) {
      return conflict(Conflict::Kind::kWrite, actor_of(write), clock_of(write), cell);
    }
  }
  return atomics && (last & kAtomics) != 0 ? check_atomics(actor, cell, granules) : nullptr;
}

const Conflict* Shadow::check_atomics(const Actor& actor, size_t cell, uint32_t granules) {
  for (size_t word = 0; word < kCellBytes / 4; ++word) {
    const auto found = atomics_.find(cell * (kCellBytes / 4) + word);
    if ((granules >> (2 * word) & 3u) == 0 || found == atomics_.end()) {
      continue;
    }
    const Atomics& clocks = found->second;
    for (uint32_t i = 0; i <= actors_; ++i) {
      // The last entry is another block's: nothing is ordered after that.
      if (clocks[i] != 0 && (i == actors_ || !actor.follows(i, clocks[i]))) {
        return conflict(Conflict::Kind::kAtomic, i, clocks[i], cell);
      }
    }
  }
  return nullptr;
}

const Conflict* Shadow::check_reads(const Actor& actor, size_t cell, uint32_t granules) {
  const auto found = reads_.unordered(actor, cell, granules);
  return found ? conflict(Conflict::Kind::kRead, found->actor, found->clock, cell) : nullptr;
}

void Shadow::remember_write(
    const Actor& actor, size_t cell, uint32_t granules, const std::source_location& where) {
  written_from_[cell] = where;
  Write& last = writes_[cell];
  if (granules == kWholeCell) {
    forget_writes(cell);
    reads_.forget(cell);
    last = epoch(actor);
    return;
  }
  if (last == epoch(actor)) {
    return;
  }
  if ((last & kSplit) == 0) {
    uint32_t index;
    if (free_splits_.empty()) {
      index = static_cast<uint32_t>(splits_.size());
      splits_.emplace_back();
    } else {
      index = free_splits_.back();
      free_splits_.pop_back();
    }
    for (Write& granule : splits_[index].granule) {
      granule = last & ~kFlags;
    }
    last = (last & kAtomics) | kSplit | index;
  }
  Split& split = splits_[clock_of(last)];
  for (int i = 0; i < kGranules; ++i) {
    if ((granules >> i & 1u) != 0) {
      split.granule[i] = epoch(actor);
    }
  }
}

void Shadow::forget_writes(size_t cell) {
  const Write last = writes_[cell];
  if ((last & kSplit) != 0) {
    free_splits_.push_back(clock_of(last));
  }
  if ((last & kAtomics) != 0) {
    for (size_t word = 0; word < kCellBytes / 4; ++word) {
      atomics_.erase(cell * (kCellBytes / 4) + word);
    }
  }
}

}  // namespace r21d::simt
