#include "simt/global_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "simt/block.h"
#include "simt/options.h"

namespace r21d::simt {
namespace {

// Inaccessible address space on both sides of a buffer, so that no index that is a little wrong
// leads into another one.
constexpr size_t kGap = size_t{16} << 20;

// NaN in every format.
constexpr unsigned char kPoison = 0xff;

std::vector<GlobalBuffer*>& buffers() {
  static std::vector<GlobalBuffer*> alive;
  return alive;
}

// Accesses mostly go where the last one went.
GlobalBuffer* last_found = nullptr;

// options().traffic of the launch under way.
bool counts_traffic = false;

void use(std::vector<bool>& granules, size_t offset, size_t bytes) {
  for (size_t granule = offset / 2; granule < (offset + bytes) / 2; ++granule) {
    granules[granule] = true;
  }
}

std::string bytes_at(const std::string& buffer, int64_t offset, size_t bytes) {
  return std::to_string(bytes) + " bytes at byte " + std::to_string(offset) + " of '" + buffer +
         "'";
}

}  // namespace

GlobalBuffer::GlobalBuffer(std::string name, const void* host, size_t bytes)
    : name_(std::move(name)), bytes_(bytes), writable_(false), host_(nullptr) {
  map();
  std::copy_n(static_cast<const unsigned char*>(host), bytes, data_);
}

GlobalBuffer::GlobalBuffer(std::string name, void* host, size_t bytes, bool writable)
    : name_(std::move(name)), bytes_(bytes), writable_(writable), host_(writable ? host : nullptr) {
  map();
  std::copy_n(static_cast<const unsigned char*>(host), bytes, data_);
}

GlobalBuffer::GlobalBuffer(std::string name, size_t bytes)
    : name_(std::move(name)), bytes_(bytes), writable_(true), host_(nullptr) {
  map();
  std::fill_n(data_, bytes, kPoison);
}

void GlobalBuffer::map() {
  const size_t page = size_t{64} << 10;  // a multiple of any page size
  const size_t inner = (bytes_ + page - 1) / page * page;
  mapping_bytes_ = inner + 2 * kGap;
  void* mapping = mmap(
      nullptr,
      mapping_bytes_,
      PROT_NONE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      /*fd=*/-1,
      0);
  if (mapping == MAP_FAILED) {
    throw std::bad_alloc();
  }
  mapping_ = static_cast<unsigned char*>(mapping);
  data_ = mapping_ + kGap;
  if (inner > 0 && mprotect(data_, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping_, mapping_bytes_);
    throw std::bad_alloc();
  }
  buffers().push_back(this);
}

GlobalBuffer::~GlobalBuffer() {
  if (host_ != nullptr) {
    std::copy_n(data_, bytes_, static_cast<unsigned char*>(host_));
  }
  std::erase(buffers(), this);
  last_found = nullptr;
  munmap(mapping_, mapping_bytes_);
}

size_t GlobalBuffer::used_bytes(const std::vector<bool>& granules) {
  return 2 * static_cast<size_t>(std::count(granules.begin(), granules.end(), true));
}

void GlobalMemory::begin_launch(uint32_t actors) {
  counts_traffic = options().traffic;
  for (GlobalBuffer* buffer : buffers()) {
    const size_t granules = counts_traffic ? (buffer->bytes_ + 1) / 2 : 0;
    buffer->used_read_.assign(granules, false);
    buffer->used_written_.assign(granules, false);
    if (buffer->writable_) {
      buffer->shadow_ = std::make_unique<Shadow>(buffer->bytes_, actors);
      buffer->read_.assign((buffer->bytes_ + 1) / 2, false);
    }
  }
}

GlobalBuffer& GlobalMemory::find(
    const void* at, size_t bytes, const char* what, const std::source_location& where) {
  const auto* address = static_cast<const unsigned char*>(at);
  const auto holds = [&](const GlobalBuffer& buffer) {
    return address >= buffer.data_ && address + bytes <= buffer.data_ + buffer.bytes_;
  };
  if (last_found == nullptr || !holds(*last_found)) {
    const auto found = std::find_if(
        buffers().begin(), buffers().end(), [&](const GlobalBuffer* b) { return holds(*b); });
    if (found == buffers().end()) [[unlikely]] {
      outside(address, bytes, what, where);
    }
    last_found = *found;
  }
  GlobalBuffer& buffer = *last_found;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) [[unlikely]] {
    fail(
        "misaligned",
        place(where),
        std::string(what) + " " + bytes_at(buffer.name_, address - buffer.data_, bytes));
  }
  return buffer;
}

void GlobalMemory::outside(
    const unsigned char* at, size_t bytes, const char* what, const std::source_location& where) {
  const GlobalBuffer* nearest = nullptr;
  int64_t least = INT64_MAX;
  for (const GlobalBuffer* buffer : buffers()) {
    const int64_t before = buffer->data_ - at;
    const int64_t after = at - (buffer->data_ + buffer->bytes_);
    if (std::max(before, after) < least) {
      least = std::max(before, after);
      nearest = buffer;
    }
  }
  std::string message = std::string(what) + " global memory, but there is no buffer";
  if (nearest != nullptr) {
    message = std::string(what) + " " + bytes_at(nearest->name_, at - nearest->data_, bytes) +
              ", which has " + std::to_string(nearest->bytes_);
  }
  fail("out of bounds", place(where), message);
}

GlobalBuffer& GlobalMemory::find_writable(
    const void* at, size_t bytes, const char* what, const std::source_location& where) {
  GlobalBuffer& buffer = find(at, bytes, what, where);
  if (!buffer.writable_) {
    fail("read-only", place(where), std::string(what) + " '" + buffer.name_ + "'");
  }
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - buffer.data_);
  for (size_t granule = offset / 2; granule < (offset + bytes) / 2; ++granule) {
    if (buffer.read_[granule]) {
      fail(
          "race",
          place(where),
          std::string(what) + " " + bytes_at(buffer.name_, static_cast<int64_t>(offset), bytes) +
              ", which was read in this launch as memory that nobody writes");
    }
  }
  return buffer;
}

void GlobalMemory::read(const void* at, size_t bytes, const std::source_location& where) {
  GlobalBuffer& buffer = find(at, bytes, "reads", where);
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - buffer.data_);
  if (counts_traffic) [[unlikely]] {
    use(buffer.used_read_, offset, bytes);
  }
  if (!buffer.writable_) {
    return;
  }
  if (buffer.shadow_->written(offset, bytes)) {
    fail(
        "race",
        place(where),
        "reads " + bytes_at(buffer.name_, static_cast<int64_t>(offset), bytes) +
            " as memory that nobody writes, but it was written in this launch");
  }
  for (size_t granule = offset / 2; granule < (offset + bytes) / 2; ++granule) {
    buffer.read_[granule] = true;
  }
}

void GlobalMemory::write(const void* at, size_t bytes, const std::source_location& where) {
  GlobalBuffer& buffer = find_writable(at, bytes, "writes", where);
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - buffer.data_);
  if (counts_traffic) [[unlikely]] {
    use(buffer.used_written_, offset, bytes);
  }
  if (const Conflict* conflict = buffer.shadow_->write(*current, offset, bytes, where)) {
    fail(
        "race",
        place(where),
        "writes " + bytes_at(buffer.name_, static_cast<int64_t>(offset), bytes) + ", which " +
            describe(*current, *conflict));
  }
}

void GlobalMemory::atomic(const void* at, const std::source_location& where) {
  GlobalBuffer& buffer = find_writable(at, 4, "adds to", where);
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(at) - buffer.data_);
  if (const Conflict* conflict = buffer.shadow_->atomic(*current, offset)) {
    fail(
        "race",
        place(where),
        "adds to " + bytes_at(buffer.name_, static_cast<int64_t>(offset), 4) + ", which " +
            describe(*current, *conflict));
  }
}

}  // namespace r21d::simt
