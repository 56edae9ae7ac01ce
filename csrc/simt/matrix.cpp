#include "simt/matrix.h"

#include <cmath>
#include <cstring>

// Sums do not depend on it: products are exact, so one rounding or two is the same.
#if defined(__x86_64__) && defined(__GLIBC__)
#define R21D_BEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define R21D_BEST_VECTORS
#endif

namespace r21d::simt {
namespace {

using Row = float __attribute__((vector_size(32)));

template <float (*widen)(uint32_t)>
[[gnu::always_inline]] inline void multiply(
    const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&c)[16][8]) {
  float left[16][16];
  float right[16][8];
  for (int row = 0; row < 16; ++row) {
    for (int pair = 0; pair < 8; ++pair) {
      left[row][pair] = widen(a[row][pair] & 0xffffu);
      left[row][pair + 8] = widen(a[row][pair] >> 16);
    }
  }
  for (int pair = 0; pair < 8; ++pair) {
    for (int column = 0; column < 8; ++column) {
      right[2 * pair][column] = widen(b[pair][column] & 0xffffu);
      right[2 * pair + 1][column] = widen(b[pair][column] >> 16);
    }
  }
  for (int row = 0; row < 16; ++row) {
    Row sum{};
    for (int k = 0; k < 16; ++k) {
      Row values;
      std::memcpy(&values, right[k], sizeof(values));
      sum += left[row][k / 2 + k % 2 * 8] * values;
    }
    std::memcpy(c[row], &sum, sizeof(sum));
  }
}

}  // namespace

R21D_BEST_VECTORS void multiply_bfloat16(
    const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&c)[16][8]) {
  multiply<widen_bfloat16>(a, b, c);
}

R21D_BEST_VECTORS void multiply_float16(
    const uint32_t (&a)[16][8], const uint32_t (&b)[8][8], float (&c)[16][8]) {
  multiply<widen_float16>(a, b, c);
}

void transpose_matrices(const uint32_t (&rows)[32][4], uint32_t (&words)[4][32]) {
  const auto value = [&](int matrix, int row, int column) {
    return rows[8 * matrix + row][column / 2] >> (16 * (column % 2)) & 0xffffu;
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < 32; ++lane) {
      const int row = 2 * (lane % 4);
      const int column = lane / 4;
      words[matrix][lane] = value(matrix, row, column) | value(matrix, row + 1, column) << 16;
    }
  }
}

uint32_t narrow_bfloat16(float value) {
  if (std::isnan(value)) {
    return 0x7fff;
  }
  const auto bits = std::bit_cast<uint32_t>(value);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

uint32_t narrow_float16(float value) {
  if (std::isnan(value)) {
    return 0x7fff;
  }
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    return sign | 0x7c00u;
  }
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves its multiples of 2^-24 in the last bits, rounded to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  return sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

}  // namespace r21d::simt
