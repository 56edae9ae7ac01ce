// The shared memory of a block: static pieces and the dynamic one, checked and poisoned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "simt/ptx_types.h"
#include "simt/shadow.h"

namespace r21d::simt {

// One expansion of R21D_STATIC_SHARED.
struct StaticShared {
  const char* name;
  uint32_t bytes;
};

class SharedMemory {
 public:
  SharedMemory(size_t dynamic_bytes, size_t limit, uint32_t actors);

  // A new block: what the last one left is NaN in every format.
  void begin_block();

  ptx::Address dynamic() const;
  ptx::Address static_piece(const StaticShared&);

  // An access by the current thread; faults where it is outside, misaligned or a race.
  const void* read(ptx::Address, size_t bytes, const std::source_location&);
  void* write(ptx::Address, size_t bytes, const std::source_location&);
  void* atomic(ptx::Address, const std::source_location&);
  void begin_copy(ptx::Address, const std::source_location&);
  void end_copy(const Actor&, ptx::Address);

  // The place itself, unchecked.
  unsigned char* bytes(ptx::Address at) {
    return storage_.get() + at;
  }

  uint64_t uninitialised_reads() const {
    return shadow_.uninitialised_reads();
  }

 private:
  struct Piece {
    std::string name;
    const StaticShared* owner;
    ptx::Address begin, end;
  };

  struct Free {
    void operator()(unsigned char* p) const;
  };

  void check(ptx::Address, size_t bytes, const char* what, const std::source_location&) const;
  [[noreturn]] void outside(
      ptx::Address, size_t bytes, const char* what, const std::source_location&) const;
  [[noreturn]] void race(
      const Conflict&, ptx::Address, const char* what, const std::source_location&) const;
  std::string describe_place(ptx::Address) const;
  void poison(ptx::Address begin, ptx::Address end);

  size_t limit_;
  ptx::Address dynamic_begin_, dynamic_end_;
  std::vector<Piece> pieces_;  // the dynamic one first
  ptx::Address next_static_;
  std::unique_ptr<unsigned char, Free> storage_;
  Shadow shadow_;
};

}  // namespace r21d::simt
