// The (2+1)D problem: sizes, strides, padding, and what follows from them. Plain data, host and
// device. Axes are N (clips), C (input), M (intermediate) and O (output channels), T, H, W.
#pragma once

#include <cstdint>

namespace r21d {

inline int64_t output_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  return (size + 2 * padding - kernel) / stride + 1;
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// The spatial convolution: x (N, C, T, H, W) -> u (N, M, T, Ho, Wo), each frame by itself.
struct SpatialGeometry {
  int64_t n, c, t, h, w;
  int64_t m;
  int64_t kh, kw, sh, sw, ph, pw;
  int64_t ho, wo;
};

// The temporal convolution: v (N, M, T, Ho, Wo) -> y (N, O, To, Ho, Wo), each pixel by itself.
struct TemporalGeometry {
  int64_t n, m, t, ho, wo;
  int64_t o;
  int64_t kt, st, pt;
  int64_t to;

  // Frames of v that one output frame can see.
  int64_t window() const {
    return kt < t ? kt : t;
  }

  // The frames of v, clipped to those that exist, that output frame `frame` sees.
  int64_t first_frame(int64_t frame) const {
    const int64_t first = frame * st - pt;
    return first < 0 ? 0 : first;
  }
  int64_t end_frame(int64_t frame) const {
    const int64_t end = frame * st - pt + kt;
    return end > t ? t : end;
  }
};

}  // namespace r21d
