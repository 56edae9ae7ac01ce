#include "simt/shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "simt/block.h"

namespace r21d::simt {
namespace {

// No address is 0, so that one that was never set is outside.
constexpr ptx::Address kStaticBegin = 1024;
constexpr ptx::Address kStaticLimit = 48 << 10;
constexpr ptx::Address kGap = 256;  // between pieces
// A boundary of 16 bytes and of no more, which is all that ptx::dynamic_shared promises.
constexpr ptx::Address kDynamicBegin = (64 << 10) + 16;
// All bits set: NaN in bfloat16, float16 and float32.
constexpr int kPoison = 0xff;

constexpr size_t round_up_to_cell(size_t bytes) {
  return (bytes + kCellBytes - 1) / kCellBytes * kCellBytes;
}

}  // namespace

void SharedMemory::Free::operator()(unsigned char* p) const {
  std::free(p);
}

SharedMemory::SharedMemory(size_t dynamic_bytes, size_t limit, uint32_t actors)
    : limit_(limit),
      dynamic_begin_(kDynamicBegin),
      dynamic_end_(kDynamicBegin + static_cast<ptx::Address>(dynamic_bytes)),
      next_static_(kStaticBegin),
      shadow_(round_up_to_cell(dynamic_end_), actors) {
  if (dynamic_bytes > limit) {
    throw std::invalid_argument(
        "dynamic_shared=" + std::to_string(dynamic_bytes) + " bytes are more than the " +
        std::to_string(limit) + " that a block may have");
  }
  storage_.reset(
      static_cast<unsigned char*>(std::aligned_alloc(64, (dynamic_end_ + 63) / 64 * 64)));
  if (storage_ == nullptr) {
    throw std::bad_alloc();
  }
  pieces_.push_back({"dynamic shared memory", nullptr, dynamic_begin_, dynamic_end_});
}

void SharedMemory::begin_block() {
  for (const Piece& piece : pieces_) {
    poison(piece.begin, piece.end);
  }
  shadow_.clear();
}

void SharedMemory::poison(ptx::Address begin, ptx::Address end) {
  std::memset(storage_.get() + begin, kPoison, end - begin);
}

ptx::Address SharedMemory::dynamic() const {
  return dynamic_begin_;
}

ptx::Address SharedMemory::static_piece(const StaticShared& wanted) {
  for (const Piece& piece : pieces_) {
    if (piece.owner == &wanted) {
      return piece.begin;
    }
  }
  size_t total = wanted.bytes;
  for (const Piece& piece : pieces_) {
    total += piece.end - piece.begin;
  }
  const ptx::Address begin = next_static_;
  const ptx::Address end = begin + wanted.bytes;
  if (end - kStaticBegin > kStaticLimit || total > limit_) {
    fail(
        "shared memory",
        wanted.name,
        std::to_string(total) + " bytes of shared memory in all are more than a block may have");
  }
  next_static_ = static_cast<ptx::Address>(round_up_to_cell(end)) + kGap;
  pieces_.push_back({wanted.name, &wanted, begin, end});
  poison(begin, end);
  return begin;
}

const void* SharedMemory::read(ptx::Address at, size_t bytes, const std::source_location& where) {
  check(at, bytes, "reads", where);
  if (const Conflict* conflict = shadow_.read(*current, at, bytes)) [[unlikely]] {
    race(*conflict, at, "reads", where);
  }
  return storage_.get() + at;
}

void* SharedMemory::write(ptx::Address at, size_t bytes, const std::source_location& where) {
  check(at, bytes, "writes", where);
  if (const Conflict* conflict = shadow_.write(*current, at, bytes, where)) [[unlikely]] {
    race(*conflict, at, "writes", where);
  }
  return storage_.get() + at;
}

void* SharedMemory::atomic(ptx::Address at, const std::source_location& where) {
  check(at, 4, "adds to", where);
  if (const Conflict* conflict = shadow_.atomic(*current, at)) [[unlikely]] {
    race(*conflict, at, "adds to", where);
  }
  return storage_.get() + at;
}

void SharedMemory::begin_copy(ptx::Address at, const std::source_location& where) {
  check(at, kCellBytes, "copies to", where);
  if (const Conflict* conflict = shadow_.begin_copy(*current, at, where)) [[unlikely]] {
    race(*conflict, at, "copies to", where);
  }
}

void SharedMemory::end_copy(const Actor& agent, ptx::Address at) {
  shadow_.end_copy(agent, at);
}

void SharedMemory::check(
    ptx::Address at, size_t bytes, const char* what, const std::source_location& where) const {
  if (at % bytes != 0) [[unlikely]] {
    fail(
        "misaligned",
        place(where),
        std::string(what) + " " + std::to_string(bytes) + " bytes at " + describe_place(at));
  }
  if (at >= dynamic_begin_ && at + bytes <= dynamic_end_) [[likely]] {
    return;
  }
  for (const Piece& piece : pieces_) {
    if (at >= piece.begin && at + bytes <= piece.end) {
      return;
    }
  }
  outside(at, bytes, what, where);
}

void SharedMemory::outside(
    ptx::Address at, size_t bytes, const char* what, const std::source_location& where) const {
  fail(
      "out of bounds",
      place(where),
      std::string(what) + " " + std::to_string(bytes) + " bytes at " + describe_place(at));
}

std::string SharedMemory::describe_place(ptx::Address at) const {
  const Piece* nearest = nullptr;
  int64_t least = INT64_MAX;
  for (const Piece& piece : pieces_) {
    const int64_t before = int64_t{piece.begin} - at;
    const int64_t after = int64_t{at} - piece.end;
    const int64_t distance = std::max<int64_t>({before, after, 0});
    if (distance < least) {
      least = distance;
      nearest = &piece;
    }
  }
  return "byte " + std::to_string(int64_t{at} - nearest->begin) + " of " + nearest->name + " (" +
         std::to_string(nearest->end - nearest->begin) + " bytes)";
}

void SharedMemory::race(
    const Conflict& conflict,
    ptx::Address at,
    const char* what,
    const std::source_location& where) const {
  fail(
      "race",
      place(where),
      std::string(what) + " " + describe_place(at) + ", which " + describe(*current, conflict));
}

}  // namespace r21d::simt
