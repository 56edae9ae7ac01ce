// Who has read what since the last write: the reads that a write must be ordered after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "simt/clock.h"

namespace r21d::simt {

// Memory comes in cells of 16 bytes of eight granules; a mask of granules has a bit for each.
inline constexpr size_t kCellBytes = 16;
inline constexpr int kGranules = 8;
inline constexpr uint32_t kWholeCell = 0xff;

class ReadSet {
 public:
  ReadSet(size_t cells, uint32_t actors);

  void remember(const Actor& actor, size_t cell, uint32_t granules) {
    const uint32_t group = actor.id / kLanes;
    if ((readers_[cell] >> group & 1u) != 0) {
      Read& read = reads_[group * cells_ + cell];
      if (read >> 32 == (uint64_t{actor.now} << 8 | granules)) [[likely]] {
        read |= 1u << actor.id % kLanes;
        return;
      }
    }
    insert(actor, cell, granules);
  }

  // A read of any of the granules that is not ordered before the actor's next access.
  struct Reader {
    uint32_t actor;
    uint32_t clock;
  };
  std::optional<Reader> unordered(const Actor&, size_t cell, uint32_t granules) const;

  // A whole cell was written after all of its reads.
  void forget(size_t cell);

  void clear();

 private:
  static constexpr uint32_t kLanes = 32;

  // Reads of a cell by a group of 32 actors: clock << 40 | granules << 32 | lanes. Each lane has
  // read each granule at that clock. Where that does not describe the reads, granules is 0 and the
  // low half an index of details_.
  using Read = uint64_t;

  static Read make(uint32_t clock, uint32_t granules, uint32_t lanes) {
    return uint64_t{clock} << 40 | uint64_t{granules} << 32 | lanes;
  }

  static uint32_t granules_of(Read read) {
    return static_cast<uint32_t>(read >> 32) & kWholeCell;
  }

  struct Detail {
    uint32_t clock[kGranules][kLanes];  // 0: not read
  };

  void insert(const Actor&, size_t cell, uint32_t granules);
  uint32_t make_detail(Read);

  size_t cells_;
  std::vector<uint32_t> readers_;  // by cell: a bit for each group that has reads
  std::vector<Read> reads_;        // by group, by cell; means nothing without that bit
  size_t reads_size_;              // of reads_ once anything is read
  std::vector<Detail> details_;
  std::vector<uint32_t> free_details_;
};

}  // namespace r21d::simt
