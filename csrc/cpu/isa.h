// One table of functions per instruction set. The operators (inference.cpp, ...) are compiled once
// for the baseline and call the arithmetic through the table that suits the machine.
#pragma once

#include <cstdint>

namespace r21d::cpu {

enum class Dtype { kFloat32, kBFloat16 };

// The widest block of output channels of one gemm call, in vectors.
inline constexpr int kMaxVectors = 3;

// Rows of operand a that one gemm call reads: rows of the spatial kernel, or frames.
inline constexpr int kMaxRows = 8;

// c[pixels][vectors * lanes] (+)= sum over rows and units of a[row][pixel][unit] *
// b[row][unit][channel].
//
// A *unit* is 32 bits of operand a: one float32, or two consecutive bfloat16 channels where the
// instruction set multiplies those in pairs. b holds, for each unit, `vectors * lanes` units, and
// row after row. c is float32, rows of `vectors * lanes`; the sum is made apart and then added to
// it, which keeps the chains of additions, and so their rounding error, short.
struct Gemm {
  int pixels;
  int vectors;
  int rows;
  int64_t units;             // of each row
  const uint32_t* const* a;  // where each row begins
  int64_t a_offset;          // of the first pixel in each row, in units
  int64_t a_pixel_stride;    // in units
  const uint32_t* b;
  float* c;
  bool accumulate;
};

// y[channel] = relu(c * scale + shift + residual), each part where its pointer is set.
struct Epilogue {
  const float* scale;
  const float* shift;
  const void* residual;
  bool relu;
};

struct Isa {
  const char* name;
  int lanes;       // float32 values in a vector
  int max_pixels;  // the most pixels of one gemm call

  // Channels in a unit of operand a for tensors of a dtype: 2 for bfloat16 where it is multiplied
  // as it is, else 1 and bfloat16 is widened.
  int (*unit_channels)(Dtype);

  void (*gemm_float32)(const Gemm&);
  void (*gemm_bfloat16)(const Gemm&);  // null where unit_channels(kBFloat16) is 1

  // `pixels` pixels of `channels` channels, widened or copied into units; the channels that fill
  // the last unit are zero.
  void (*load_units)(Dtype, const void* x, int64_t pixels, int64_t channels, uint32_t* units);

  // v = relu(c * scale + shift) of `channels` channels into units.
  void (*norm_relu_units)(
      int unit_channels,
      const float* c,
      const float* scale,
      const float* shift,
      int64_t channels,
      uint32_t* units);

  // v = relu(u * scale + shift) of one pixel into units; padding channels become zero.
  void (*norm_relu_load)(
      Dtype,
      int unit_channels,
      const void* u,
      const float* scale,
      const float* shift,
      int64_t channels,
      uint32_t* units);

  // c of `channels` channels into y through the epilogue.
  void (*store)(Dtype, const float* c, int64_t channels, const Epilogue&, void* y);

  // Adds one pixel of u to Welford's running mean and sum of squared deviations.
  void (*accumulate_statistics)(
      Dtype, const void* u, int64_t channels, float reciprocal_count, float* mean, float* m2);

  // The three elementwise passes of training, over `pixels` pixels.
  void (*norm_relu)(
      Dtype,
      const void* u,
      const float* scale,
      const float* shift,
      int64_t pixels,
      int64_t channels,
      void* v);
  void (*norm_relu_backward)(
      Dtype,
      const void* grad,
      const void* u,
      const float* scale,
      const float* shift,
      const float* mean,
      const float* invstd,
      int64_t pixels,
      int64_t channels,
      void* g,
      float* sum_g,
      float* sum_g_normalized);
  void (*norm_backward)(
      Dtype,
      const void* g,
      const void* u,
      const float* g_factor,
      const float* u_factor,
      const float* offset,
      int64_t pixels,
      int64_t channels,
      void* grad_u);
};

extern const Isa kIsaGeneric;
#ifdef R21D_X86
extern const Isa kIsaAvx2;
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx512Bf16;
#endif

// The best table for this machine, or the one that R21D_CPU_ISA names. Throws std::runtime_error
// where that one is unknown or cannot run here.
const Isa& isa();

// Names of the tables that can run on this machine, best first.
int available_isas(const Isa** tables, int capacity);

// Bytes of one core's L2 cache; 1 MiB where the system does not tell.
int64_t l2_bytes();

}  // namespace r21d::cpu
