// The arithmetic of one instruction set. Each isa_*.cpp defines its widths and includes this file
// once, so the same source is compiled for each. Vectors are the GCC and Clang vector extension.
//
// Everything here is in an unnamed namespace and nothing of the standard library with code in it
// is used: an inline function that the linker might share between instruction sets would run
// AVX-512 code on a machine without it.
//
// Needs: R21D_LANES, R21D_MAX_PIXELS, R21D_PAIRS (1 where bfloat16 is multiplied in pairs by
// multiply_pairs and made by narrow_vector) and R21D_ISA, the table's name.

#include <cstddef>
#include <cstring>

#include "cpu/isa.h"

namespace r21d::cpu {
namespace {

constexpr int kLanes = R21D_LANES;
constexpr int kMaxPixels = R21D_MAX_PIXELS;

// aligned(4): loads and stores through it are unaligned ones; may_alias: it reads any buffer.
typedef float Vector __attribute__((vector_size(4 * R21D_LANES), aligned(4), may_alias));
typedef uint16_t Half __attribute__((may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * R21D_LANES), aligned(4), may_alias));

inline Vector load(const void* p) {
  return *static_cast<const Vector*>(p);
}

inline void store_vector(void* p, Vector value) {
  *static_cast<Vector*>(p) = value;
}

inline float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Through integers: adding a float to a zero vector is an addition (0 + -0), not a broadcast.
inline Vector broadcast(uint32_t bits) {
  return reinterpret_cast<Vector>(Bits{} + bits);
}

struct Float32 {
  using Storage = float;
  static float widen(float value) {
    return value;
  }
  static float narrow(float value) {
    return value;
  }
};

struct BFloat16 {
  using Storage = uint16_t;
  static float widen(uint16_t bits) {
    return as_float(static_cast<uint32_t>(bits) << 16);
  }
  // Round to nearest even; a NaN stays one whatever its payload.
  static uint16_t narrow(float value) {
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
};

// ReLU that keeps NaN: fmax and max instructions would drop it.
inline float relu(float value) {
  return value <= 0.0f ? 0.0f : value;
}

struct MultiplyFloat32 {
  static Vector apply(uint32_t a, Vector b, Vector c) {
    return broadcast(a) * b + c;
  }
};

#if R21D_PAIRS
struct MultiplyPairs {
  static Vector apply(uint32_t a, Vector b, Vector c) {
    return multiply_pairs<Vector>(a, b, c);
  }
};
#endif

// The register tile: kPixels x kVectors accumulators, one broadcast and kVectors loads a unit.
template <class Multiply, int kPixels, int kVectors>
void gemm_tile(const Gemm& g) {
  Vector c[kPixels][kVectors] = {};
  const uint32_t* b = g.b;
  for (int r = 0; r < g.rows; ++r) {
    const uint32_t* a = g.a[r] + g.a_offset;
    for (int64_t unit = 0; unit < g.units; ++unit) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        row[v] = load(b + v * kLanes);
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const uint32_t pixel = a[p * g.a_pixel_stride + unit];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          c[p][v] = Multiply::apply(pixel, row[v], c[p][v]);
        }
      }
      b += kVectors * kLanes;
    }
  }
  float* out = g.c;
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v, out += kLanes) {
      store_vector(out, g.accumulate ? load(out) + c[p][v] : c[p][v]);
    }
  }
}

template <class Multiply, int kPixels>
void gemm_pixels(const Gemm& g) {
  if constexpr (kPixels > 0) {
    if (g.pixels != kPixels) {
      gemm_pixels<Multiply, kPixels - 1>(g);
    } else if (g.vectors == 1) {
      gemm_tile<Multiply, kPixels, 1>(g);
    } else if (g.vectors == 2) {
      gemm_tile<Multiply, kPixels, 2>(g);
    } else {
      gemm_tile<Multiply, kPixels, 3>(g);
    }
  }
}

template <class Multiply>
void gemm(const Gemm& g) {
  gemm_pixels<Multiply, kMaxPixels>(g);
}

int unit_channels(Dtype dtype) {
  return R21D_PAIRS && dtype == Dtype::kBFloat16 ? 2 : 1;
}

// Runs `body` with the storage type of `dtype`.
template <class Body>
void with_dtype(Dtype dtype, Body body) {
  if (dtype == Dtype::kFloat32) {
    body(Float32{});
  } else {
    body(BFloat16{});
  }
}

void load_units(Dtype dtype, const void* x, int64_t pixels, int64_t channels, uint32_t* units) {
  if (dtype == Dtype::kFloat32) {
    std::memcpy(units, x, static_cast<size_t>(pixels * channels) * sizeof(float));
    return;
  }
  const auto* source = static_cast<const uint16_t*>(x);
  if (unit_channels(dtype) == 1) {
    for (int64_t i = 0; i < pixels * channels; ++i) {
      units[i] = static_cast<uint32_t>(source[i]) << 16;
    }
  } else if (channels % 2 == 0) {
    std::memcpy(units, x, static_cast<size_t>(pixels * channels) * sizeof(uint16_t));
  } else {
    const int64_t whole = channels / 2;
    for (int64_t p = 0; p < pixels; ++p) {
      const uint16_t* pixel = source + p * channels;
      std::memcpy(units, pixel, static_cast<size_t>(whole) * sizeof(uint32_t));
      units[whole] = pixel[channels - 1];
      units += whole + 1;
    }
  }
}

// `value(channel)` of `channels` channels into units of one or two channels.
template <class Value>
void fill_units(int channels_per_unit, int64_t channels, uint32_t* units, Value value) {
  if (channels_per_unit == 1) {
    for (int64_t i = 0; i < channels; ++i) {
      units[i] = as_bits(value(i));
    }
    return;
  }
  // The instruction sets that multiply pairs are little-endian: units are the channels in order.
  auto* halves = reinterpret_cast<Half*>(units);
  for (int64_t i = 0; i < channels; ++i) {
    halves[i] = BFloat16::narrow(value(i));
  }
  if (channels % 2 != 0) {
    halves[channels] = 0;
  }
}

void norm_relu_units(
    int channels_per_unit,
    const float* c,
    const float* scale,
    const float* shift,
    int64_t channels,
    uint32_t* units) {
#if R21D_PAIRS
  if (channels_per_unit == 2 && channels % kLanes == 0) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      const Vector z = load(c + i) * load(scale + i) + load(shift + i);
      narrow_vector(z <= 0.0f ? Vector{} : z, units + i / 2);
    }
    return;
  }
#endif
  fill_units(channels_per_unit, channels, units, [=](int64_t i) {
    return relu(c[i] * scale[i] + shift[i]);
  });
}

void norm_relu_load(
    Dtype dtype,
    int channels_per_unit,
    const void* u,
    const float* scale,
    const float* shift,
    int64_t channels,
    uint32_t* units) {
  with_dtype(dtype, [=](auto type) {
    using Type = decltype(type);
    const auto* source = static_cast<const typename Type::Storage*>(u);
    fill_units(channels_per_unit, channels, units, [=](int64_t i) {
      return relu(Type::widen(source[i]) * scale[i] + shift[i]);
    });
  });
}

void store(Dtype dtype, const float* c, int64_t channels, const Epilogue& e, void* y) {
  with_dtype(dtype, [&](auto type) {
    using Type = decltype(type);
    using Storage = typename Type::Storage;
    auto* out = static_cast<Storage*>(y);
    const auto* residual = static_cast<const Storage*>(e.residual);
    // The branches do not depend on the channel: the compiler takes them out of the loop.
    const bool has_scale = e.scale != nullptr;
    const bool has_shift = e.shift != nullptr;
    const bool has_residual = residual != nullptr;
    const bool has_relu = e.relu;
    for (int64_t i = 0; i < channels; ++i) {
      float value = c[i];
      value = has_scale ? value * e.scale[i] : value;
      value = has_shift ? value + e.shift[i] : value;
      value = has_residual ? value + Type::widen(residual[i]) : value;
      value = has_relu ? relu(value) : value;
      out[i] = Type::narrow(value);
    }
  });
}

void accumulate_statistics(
    Dtype dtype, const void* u, int64_t channels, float reciprocal_count, float* mean, float* m2) {
  with_dtype(dtype, [=](auto type) {
    using Type = decltype(type);
    const auto* source = static_cast<const typename Type::Storage*>(u);
    for (int64_t i = 0; i < channels; ++i) {
      const float value = Type::widen(source[i]);
      const float before = value - mean[i];
      mean[i] += before * reciprocal_count;
      m2[i] += before * (value - mean[i]);
    }
  });
}

void norm_relu(
    Dtype dtype,
    const void* u,
    const float* scale,
    const float* shift,
    int64_t pixels,
    int64_t channels,
    void* v) {
  with_dtype(dtype, [=](auto type) {
    using Type = decltype(type);
    const auto* source = static_cast<const typename Type::Storage*>(u);
    auto* out = static_cast<typename Type::Storage*>(v);
    for (int64_t p = 0; p < pixels; ++p, source += channels, out += channels) {
      for (int64_t i = 0; i < channels; ++i) {
        out[i] = Type::narrow(relu(Type::widen(source[i]) * scale[i] + shift[i]));
      }
    }
  });
}

void norm_relu_backward(
    Dtype dtype,
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
    float* sum_g_normalized) {
  with_dtype(dtype, [=](auto type) {
    using Type = decltype(type);
    using Storage = typename Type::Storage;
    const auto* incoming = static_cast<const Storage*>(grad);
    const auto* stored = static_cast<const Storage*>(u);
    auto* out = static_cast<Storage*>(g);
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t i = 0; i < channels; ++i) {
        const float value = Type::widen(stored[i]);
        const float normed = value * scale[i] + shift[i];
        // Where bn(u) is NaN the gradient passes, as in relu's own backward.
        const float masked = normed <= 0.0f ? 0.0f : Type::widen(incoming[i]);
        out[i] = Type::narrow(masked);
        sum_g[i] += masked;
        sum_g_normalized[i] += masked * ((value - mean[i]) * invstd[i]);
      }
      incoming += channels;
      stored += channels;
      out += channels;
    }
  });
}

void norm_backward(
    Dtype dtype,
    const void* g,
    const void* u,
    const float* g_factor,
    const float* u_factor,
    const float* offset,
    int64_t pixels,
    int64_t channels,
    void* grad_u) {
  with_dtype(dtype, [=](auto type) {
    using Type = decltype(type);
    using Storage = typename Type::Storage;
    const auto* incoming = static_cast<const Storage*>(g);
    const auto* stored = static_cast<const Storage*>(u);
    auto* out = static_cast<Storage*>(grad_u);
    for (int64_t p = 0; p < pixels; ++p) {
      if (u_factor == nullptr) {
        for (int64_t i = 0; i < channels; ++i) {
          out[i] = Type::narrow(Type::widen(incoming[i]) * g_factor[i]);
        }
      } else {
        for (int64_t i = 0; i < channels; ++i) {
          const float rest = Type::widen(stored[i]) * u_factor[i] + offset[i];
          out[i] = Type::narrow(Type::widen(incoming[i]) * g_factor[i] + rest);
        }
      }
      incoming += channels;
      stored += channels;
      out += channels;
    }
  });
}

}  // namespace

const Isa R21D_ISA = {
    R21D_ISA_NAME,
    kLanes,
    kMaxPixels,
    unit_channels,
    gemm<MultiplyFloat32>,
#if R21D_PAIRS
    gemm<MultiplyPairs>,
#else
    nullptr,
#endif
    load_units,
    norm_relu_units,
    norm_relu_load,
    store,
    accumulate_statistics,
    norm_relu,
    norm_relu_backward,
    norm_backward,
};

}  // namespace r21d::cpu
