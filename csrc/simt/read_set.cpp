#include "simt/read_set.h"

#include <bit>

namespace r21d::simt {
namespace {

// Calls body(i) for each set bit i until it returns false; whether it never did.
template <class Body>
bool all_bits(uint32_t bits, Body body) {
  for (; bits != 0; bits &= bits - 1) {
    if (!body(static_cast<uint32_t>(std::countr_zero(bits)))) {
      return false;
    }
  }
  return true;
}

}  // namespace

ReadSet::ReadSet(size_t cells, uint32_t actors)
    : cells_(cells), readers_(cells), reads_size_(cells * ((actors + kLanes - 1) / kLanes)) {
}

void ReadSet::insert(const Actor& actor, size_t cell, uint32_t granules) {
  const uint32_t group = actor.id / kLanes;
  const uint32_t lane = actor.id % kLanes;
  if (reads_.empty()) {
    reads_.resize(reads_size_);
  }
  Read& read = reads_[group * cells_ + cell];
  if ((readers_[cell] >> group & 1u) == 0) {
    readers_[cell] |= 1u << group;
    read = make(actor.now, granules, 1u << lane);
    return;
  }
  const uint32_t old_granules = granules_of(read);
  if (old_granules != 0) {
    const auto old_clock = static_cast<uint32_t>(read >> 40);
    const auto lanes = static_cast<uint32_t>(read);
    if (old_clock == actor.now && lanes == 1u << lane) {
      read |= uint64_t{granules} << 32;
      return;
    }
    if (old_clock == actor.now && (lanes >> lane & 1u) != 0 && (granules & ~old_granules) == 0) {
      return;
    }
    // Reads that are ordered before this one and of no other granules are implied by it.
    if ((old_granules & ~granules) == 0 &&
        all_bits(lanes, [&](uint32_t i) { return actor.follows(group * kLanes + i, old_clock); })) {
      read = make(actor.now, granules, 1u << lane);
      return;
    }
    read = make_detail(read);
  }
  Detail& detail = details_[static_cast<uint32_t>(read)];
  all_bits(granules, [&](uint32_t granule) {
    detail.clock[granule][lane] = actor.now;
    return true;
  });
}

uint32_t ReadSet::make_detail(Read read) {
  uint32_t index;
  if (free_details_.empty()) {
    index = static_cast<uint32_t>(details_.size());
    details_.emplace_back();
  } else {
    index = free_details_.back();
    free_details_.pop_back();
  }
  const auto lanes = static_cast<uint32_t>(read);
  for (int granule = 0; granule < kGranules; ++granule) {
    const bool read_it = (granules_of(read) >> granule & 1u) != 0;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const bool by_it = (lanes >> lane & 1u) != 0;
      details_[index].clock[granule][lane] =
          read_it && by_it ? static_cast<uint32_t>(read >> 40) : 0;
    }
  }
  return index;
}

std::optional<ReadSet::Reader> ReadSet::unordered(
    const Actor& actor, size_t cell, uint32_t granules) const {
  std::optional<Reader> found;
  const auto ordered = [&](uint32_t reader, uint32_t clock) {
    if (clock == 0 || actor.follows(reader, clock)) {
      return true;
    }
    found = Reader{reader, clock};
    return false;
  };
  all_bits(readers_[cell], [&](uint32_t group) {
    const Read read = reads_[group * cells_ + cell];
    const uint32_t first = group * kLanes;
    if (granules_of(read) == 0) {
      const Detail& detail = details_[static_cast<uint32_t>(read)];
      return all_bits(granules, [&](uint32_t granule) {
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
          if (!ordered(first + lane, detail.clock[granule][lane])) {
            return false;
          }
        }
        return true;
      });
    }
    return (granules_of(read) & granules) == 0 ||
           all_bits(static_cast<uint32_t>(read), [&](uint32_t lane) {
             return ordered(first + lane, static_cast<uint32_t>(read >> 40));
           });
  });
  return found;
}

void ReadSet::forget(size_t cell) {
  all_bits(readers_[cell], [&](uint32_t group) {
    const Read read = reads_[group * cells_ + cell];
    if (granules_of(read) == 0) {
      free_details_.push_back(static_cast<uint32_t>(read));
    }
    return true;
  });
  readers_[cell] = 0;
}

void ReadSet::clear() {
  std::fill(readers_.begin(), readers_.end(), 0);
  details_.clear();
  free_details_.clear();
}

}  // namespace r21d::simt
