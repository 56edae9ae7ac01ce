// The two convolutions as conv.cuh takes them, and the problems that 32-bit indices do not reach.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "cuda/config.h"
#include "geometry.h"

namespace r21d::cuda {

inline constexpr int64_t kMaxGridY = 65535;
// Every tile of a convolution has at least 48 columns.
inline constexpr int64_t kMostChannels = kMaxGridY * 48;
// Each by itself, so that sums of a few of them are 32-bit numbers.
inline constexpr int64_t kMostSize = int64_t{1} << 28;
inline constexpr int kMostTilePixels = 128;

// A convolution over images, as conv.cuh takes it.
struct ConvProblem {
  int64_t images, rows, cols, channels;
  int64_t out_rows, out_cols, columns, pitch;
  int64_t kernel_rows, kernel_cols, padding_rows, padding_cols;
  bool narrow;

  int64_t pixels() const {
    return images * out_rows * out_cols;
  }
  int64_t depth() const {
    return round_up(kernel_rows * kernel_cols * channels, kChunk);
  }
};

inline bool is_narrow(const SpatialGeometry& s) {
  return s.c < kChunk;
}

inline int64_t read_channels(const SpatialGeometry& s) {
  return is_narrow(s) ? s.c : round_up(s.c, kChunk);
}

inline int64_t mid_pitch(const SpatialGeometry& s) {
  return round_up(s.m, 16);
}

inline ConvProblem spatial_problem(const SpatialGeometry& s) {
  return {
      s.n * s.t,
      s.h,
      s.w,
      read_channels(s),
      s.ho,
      s.wo,
      s.m,
      mid_pitch(s),
      s.kh,
      s.kw,
      s.ph,
      s.pw,
      is_narrow(s)};
}

inline ConvProblem temporal_problem(const SpatialGeometry& s, const TemporalGeometry& t) {
  const int64_t pixels = t.ho * t.wo;
  return {t.n, t.t, pixels, mid_pitch(s), t.to, pixels, t.o, t.o, t.kt, 1, t.pt, 0, false};
}

// ---- limits

// A size in a message; a double holds products of several sizes.
inline std::string number(double value) {
  return std::to_string(static_cast<unsigned long long>(std::min(value, 1e18)));
}

// The last pixel that a thread of the convolution may compute an index for. Those of the last tile
// lie up to a tile behind the images, and the taps of the last row reach into the padding.
inline double last_pixel(const ConvProblem& p) {
  const double out = static_cast<double>(p.out_rows) * static_cast<double>(p.out_cols);
  const double images = static_cast<double>(p.images) + 1.0 + std::ceil(kMostTilePixels / out);
  const double rows = images * static_cast<double>(p.rows) + static_cast<double>(p.padding_rows);
  return (rows + 1.0) * static_cast<double>(p.cols) + static_cast<double>(p.padding_cols);
}

// Why the kernels' 32-bit indices do not reach all of the problem; empty: they do.
inline std::string too_large(const SpatialGeometry& s, const TemporalGeometry& t) {
  constexpr double kMost = 2147483647.0;
  const auto product = [](std::initializer_list<int64_t> values) {
    double all = 1.0;
    for (const int64_t value : values) {
      all *= static_cast<double>(value);
    }
    return all;
  };
  const auto over = [&](const char* what, double count, double most, const char* unit) {
    return std::string(what) + " has " + number(count) + " " + unit + "; at most " + number(most) +
           " are served";
  };
  for (const int64_t value :
       {s.n, s.c, s.t, s.h, s.w, s.kh, s.kw, s.sh, s.sw, s.ph, s.pw, t.kt, t.st, t.pt}) {
    if (value > kMostSize) {
      return "a size, stride or padding is " + std::to_string(value) + "; at most " +
             std::to_string(kMostSize) + " is served";
    }
  }
  for (const auto& [what, channels] : {std::pair{"u", s.m}, std::pair{"y", t.o}}) {
    if (channels > kMostChannels) {
      return over(what, static_cast<double>(channels), kMostChannels, "channels");
    }
  }
  constexpr double kMostPixels = kMost - kMostTilePixels;
  const double pixels[] = {
      product({s.n, s.t, s.h, s.w}),
      product({s.n, s.t, s.ho, s.wo}),
      product({t.n, t.to, t.ho, t.wo})};
  const char* const names[] = {"x", "u", "y"};
  for (int i = 0; i < 3; ++i) {
    if (pixels[i] > kMostPixels) {
      return over(names[i], pixels[i], kMostPixels, "pixels");
    }
  }
  const double reach[] = {last_pixel(spatial_problem(s)), last_pixel(temporal_problem(s, t))};
  for (int i = 0; i < 2; ++i) {
    if (reach[i] > kMost) {
      return over(names[i], reach[i], kMost, "pixels with its padding and a tile behind it");
    }
  }
  constexpr double kMostDepth = kMost - 256.0;
  const double depths[] = {product({s.kh, s.kw, round_up(s.c, 16)}), product({t.kt, mid_pitch(s)})};
  const char* const weights[] = {"spatial_weight", "temporal_weight"};
  for (int i = 0; i < 2; ++i) {
    if (depths[i] > kMostDepth) {
      return over(weights[i], depths[i], kMostDepth, "values for an output channel");
    }
  }
  return "";
}

}  // namespace r21d::cuda
