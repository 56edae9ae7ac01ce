// AVX-512 with vdpbf16ps, which multiplies bfloat16 in pairs and adds both products in float32.
#include <immintrin.h>

#include <cstdint>

namespace r21d::cpu {
namespace {

template <class Vector>
inline Vector multiply_pairs(uint32_t a, Vector b, Vector c) {
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(c),
      reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))),
      reinterpret_cast<__m512bh>(b)));
}

// 16 float32 as bfloat16 in order: 8 units.
template <class Vector>
inline void narrow_vector(Vector value, uint32_t* units) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(units),
      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value))));
}

}  // namespace
}  // namespace r21d::cpu

#define R21D_ISA kIsaAvx512Bf16
#define R21D_ISA_NAME "avx512_bf16"
#define R21D_LANES 16
#define R21D_MAX_PIXELS 8
#define R21D_PAIRS 1
#include "cpu/kernels.inl"
