// The plain types of cuda/ptx.cuh.
#pragma once

#include <cstdint>

namespace r21d::ptx {

struct Index3 {
  uint32_t x, y, z;
};

// Of shared memory, in bytes.
using Address = uint32_t;

struct alignas(8) Vec2 {
  uint32_t x[2];
};

struct alignas(16) Vec4 {
  uint32_t x[4];
};

struct Fragment4 {
  uint32_t x[4];
};

struct Fragment2 {
  uint32_t x[2];
};

// 16-bit formats: the type of the elements, as a tag.
struct Bfloat16 {};
struct Float16 {};

}  // namespace r21d::ptx
