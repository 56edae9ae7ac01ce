// The arithmetic of the tensor cores and of the 16-bit formats.
#pragma once

#include <bit>
#include <cstdint>

namespace r21d::simt {

// a 16×16 by rows, b 16×8, both as pairs along k with the lower k in the lower half.
void multiply_bfloat16(const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&c)[16][8]);
void multiply_float16(const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&c)[16][8]);

// Four 8×8 matrices of 16-bit values whose rows are given, to the words of ldmatrix .trans: lane l
// gets rows 2 · (l % 4) and the next of column l / 4.
void transpose_matrices(const uint32_t (&rows)[32][4], uint32_t (&words)[4][32]);

inline float widen_bfloat16(uint32_t half) {
  return std::bit_cast<float>(half << 16);
}

inline float widen_float16(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  // The exponent is moved to float32's bias by a multiplication, which also normalises subnormals.
  const float magnitude =
      std::bit_cast<float>((half & 0x7fffu) << 13) * std::bit_cast<float>(0x77800000u);
  const uint32_t special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | special | sign);
}

// Rounded to nearest even; NaN becomes the one that cvt gives.
uint32_t narrow_bfloat16(float value);
uint32_t narrow_float16(float value);

}  // namespace r21d::simt
