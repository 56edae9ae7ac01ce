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

struct Geometry {
  SpatialGeometry spatial;
  TemporalGeometry temporal;
};

// Both convolutions from sizes N, C, T, H, W, M, O and from (t, h, w) of kernel, stride and
// padding.
template <class Values>
Geometry make_geometry(
    const Values& sizes, const Values& kernel, const Values& stride, const Values& padding) {
  SpatialGeometry s{};
  s.n = sizes[0];
  s.c = sizes[1];
  s.t = sizes[2];
  s.h = sizes[3];
  s.w = sizes[4];
  s.m = sizes[5];
  s.kh = kernel[1];
  s.kw = kernel[2];
  s.sh = stride[1];
  s.sw = stride[2];
  s.ph = padding[1];
  s.pw = padding[2];
  s.ho = output_size(s.h, s.kh, s.sh, s.ph);
  s.wo = output_size(s.w, s.kw, s.sw, s.pw);
  TemporalGeometry t{};
  t.n = s.n;
  t.m = s.m;
  t.t = s.t;
  t.ho = s.ho;
  t.wo = s.wo;
  t.o = sizes[6];
  t.kt = kernel[0];
  t.st = stride[0];
  t.pt = padding[0];
  t.to = output_size(t.t, t.kt, t.st, t.pt);
  return {s, t};
}

}  // namespace r21d
