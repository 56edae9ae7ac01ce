// What is remembered of the accesses to a piece of memory, to find races between them: the last
// write, and the reads and atomics since, with vector clocks, after FastTrack (Flanagan and Freund,
// PLDI 2009). A cell of 16 bytes is one entry while it is written as a whole; its eight granules of
// 2 bytes are told apart where it is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <unordered_map>
#include <vector>

#include "simt/clock.h"
#include "simt/read_set.h"

namespace r21d::simt {

// An earlier access that is not ordered before the present one.
struct Conflict {
  enum class Kind { kRead, kWrite, kAtomic, kAsyncCopy };
  Kind kind;
  uint32_t actor;
  uint32_t clock;
  std::source_location where;  // of the last write to the cell, for kWrite and kAsyncCopy
};

class Shadow {
 public:
  // Memory of `bytes` bytes that `actors` actors access.
  Shadow(size_t bytes, uint32_t actors);

  // An access lies within one cell. The first conflict is returned, else null; without one the
  // access is remembered.
  const Conflict* read(const Actor& actor, size_t offset, size_t bytes) {
    const size_t cell = offset / kCellBytes;
    const uint32_t granules = granules_of(offset, bytes);
    if (const Conflict* found = check_writes(actor, cell, granules)) [[unlikely]] {
      return found;
    }
    uninitialised_reads_ += written_granules(cell, granules) != granules;
    reads_.remember(actor, cell, granules);
    return nullptr;
  }

  const Conflict* write(const Actor&, size_t offset, size_t bytes, const std::source_location&);

  // Of 4 bytes; atomics do not conflict with each other.
  const Conflict* atomic(const Actor&, size_t offset);

  // A cell is being written from the first call to the second: nobody may access it meanwhile.
  const Conflict* begin_copy(const Actor&, size_t offset, const std::source_location&);
  void end_copy(const Actor&, size_t offset);

  // Whether any part of the access was written.
  bool written(size_t offset, size_t bytes) const {
    return written_granules(offset / kCellBytes, granules_of(offset, bytes)) != 0;
  }

  // Reads of what nobody had written, in part or as a whole.
  uint64_t uninitialised_reads() const {
    return uninitialised_reads_;
  }

  // Forgets everything but that count.
  void clear();

 private:
  // The last write of a cell or granule: actor << 32 | clock, and flags; 0 is never written.
  using Write = uint64_t;
  static constexpr Write kInFlight = uint64_t{1} << 48;  // by an asynchronous copy
  static constexpr Write kSplit = uint64_t{1} << 49;     // by several: an index of splits_
  static constexpr Write kAtomics = uint64_t{1} << 50;   // and atomics, in atomics_
  static constexpr Write kFlags = ~((uint64_t{1} << 48) - 1);

  struct Split {
    Write granule[kGranules];
  };

  // Of each actor the clock of its last atomic on a word, then that of the last one by another
  // block; 0 for none.
  using Atomics = std::vector<uint32_t>;

  static uint32_t granules_of(size_t offset, size_t bytes) {
    return ((1u << (bytes / 2)) - 1) << (offset % kCellBytes / 2);
  }

  static Write epoch(const Actor& actor) {
    return uint64_t{actor.id} << 32 | actor.now;
  }

  static uint32_t actor_of(Write write) {
    return static_cast<uint32_t>(write >> 32) & 0xffffu;
  }

  static uint32_t clock_of(Write write) {
    return static_cast<uint32_t>(write);
  }

  static bool follows(const Actor& actor, Write write) {
    return write == 0 || actor.follows(actor_of(write), clock_of(write));
  }

  const Conflict* check_writes(const Actor& actor, size_t cell, uint32_t granules) {
    const Write last = writes_[cell];
    if ((last & kFlags) == 0 && follows(actor, last)) [[likely]] {
      return nullptr;
    }
    return check_flagged(actor, cell, granules, /*atomics=*/true);
  }

  uint32_t written_granules(size_t cell, uint32_t granules) const {
    const Write last = writes_[cell];
    if ((last & kSplit) != 0) [[unlikely]] {
      return written_in_split(cell, granules);
    }
    return last == 0 ? 0 : granules;
  }

  uint32_t written_in_split(size_t cell, uint32_t granules) const;
  const Conflict* conflict(Conflict::Kind, uint32_t actor, uint32_t clock, size_t cell);
  const Conflict* check_flagged(const Actor&, size_t cell, uint32_t granules, bool atomics);
  const Conflict* check_atomics(const Actor&, size_t cell, uint32_t granules);
  const Conflict* check_reads(const Actor&, size_t cell, uint32_t granules);
  void remember_write(const Actor&, size_t cell, uint32_t granules, const std::source_location&);
  void forget_writes(size_t cell);

  uint32_t actors_;
  std::vector<Write> writes_;                       // by cell
  std::vector<std::source_location> written_from_;  // by cell
  ReadSet reads_;
  std::vector<Split> splits_;
  std::vector<uint32_t> free_splits_;
  std::unordered_map<size_t, Atomics> atomics_;  // by word
  uint64_t uninitialised_reads_ = 0;
  Conflict conflict_{};
};

}  // namespace r21d::simt
