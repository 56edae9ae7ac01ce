// Global memory: buffers that kernels may read or write, checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "simt/shadow.h"

namespace r21d::simt {

// A buffer at an address of its own, with nothing near it, for as long as the object lives.
class GlobalBuffer {
 public:
  // Filled from `host`; a writable one is copied back there at the end.
  GlobalBuffer(std::string name, const void* host, size_t bytes);
  GlobalBuffer(std::string name, void* host, size_t bytes, bool writable);
  // Scratch for launches: writable, NaN at first.
  GlobalBuffer(std::string name, size_t bytes);
  ~GlobalBuffer();
  GlobalBuffer(const GlobalBuffer&) = delete;
  GlobalBuffer& operator=(const GlobalBuffer&) = delete;

  const std::string& name() const {
    return name_;
  }

  // Of the last launch, with options().traffic: bytes that were read or written, each once.
  size_t bytes_read() const {
    return used_bytes(used_read_);
  }
  size_t bytes_written() const {
    return used_bytes(used_written_);
  }

  // What kernels are given; on a boundary of 256 bytes, as cudaMalloc's.
  template <class T>
  T* pointer() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  friend class GlobalMemory;

  static size_t used_bytes(const std::vector<bool>& granules);

  void map();

  std::string name_;
  size_t bytes_;
  bool writable_;
  void* host_;  // where to copy back, or null
  unsigned char* mapping_;
  size_t mapping_bytes_;
  unsigned char* data_;
  // Of the launch under way, for a writable one.
  std::unique_ptr<Shadow> shadow_;
  std::vector<bool> read_;  // by granule of 2 bytes
  // With options().traffic, of any buffer, by granule.
  std::vector<bool> used_read_, used_written_;
};

// What the current thread does with any of the buffers that are alive; faults where an access lies
// in none of them or is misaligned, and where one place is
//  - written by two threads or blocks with no order between them,
//  - both written and read in one launch: reads are those of memory that nobody writes
//    (ld.global.nc), or of inputs (cp.async).
class GlobalMemory {
 public:
  static void begin_launch(uint32_t actors);

  static void read(const void* at, size_t bytes, const std::source_location&);
  static void write(const void* at, size_t bytes, const std::source_location&);
  static void atomic(const void* at, const std::source_location&);

 private:
  static GlobalBuffer& find(
      const void* at, size_t bytes, const char* what, const std::source_location&);
  [[noreturn]] static void outside(
      const unsigned char* at, size_t bytes, const char* what, const std::source_location&);
  static GlobalBuffer& find_writable(
      const void* at, size_t bytes, const char* what, const std::source_location&);
};

}  // namespace r21d::simt
