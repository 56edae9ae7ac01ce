#include "operands.h"

namespace r21d {

SpatialGeometry spatial_geometry(
    const Tensor& x, const Tensor& weight, const Ints& stride, const Ints& padding) {
  check_ndhwc(x, "x");
  check_dtype(weight, x.scalar_type(), "spatial_weight");
  check_triple(stride, 1, "stride");
  check_triple(padding, 0, "padding");
  STD_TORCH_CHECK(
      weight.dim() == 5 && weight.size(2) == 1, "spatial_weight must be (M, C, 1, d, d)");
  STD_TORCH_CHECK(x.size(1) == weight.size(1), "x and spatial_weight differ in channels");
  SpatialGeometry g{};
  g.n = x.size(0);
  g.c = x.size(1);
  g.t = x.size(2);
  g.h = x.size(3);
  g.w = x.size(4);
  g.m = weight.size(0);
  g.kh = weight.size(3);
  g.kw = weight.size(4);
  g.sh = stride[1];
  g.sw = stride[2];
  g.ph = padding[1];
  g.pw = padding[2];
  g.ho = output_size(g.h, g.kh, g.sh, g.ph);
  g.wo = output_size(g.w, g.kw, g.sw, g.pw);
  STD_TORCH_CHECK(
      g.c > 0 && g.t > 0 && g.m > 0 && g.kh > 0 && g.kw > 0 && g.ho > 0 && g.wo > 0,
      "the spatial convolution has an empty axis or output");
  return g;
}

TemporalGeometry temporal_geometry(
    int64_t n,
    int64_t t,
    int64_t ho,
    int64_t wo,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding) {
  check_triple(stride, 1, "stride");
  check_triple(padding, 0, "padding");
  STD_TORCH_CHECK(
      weight.dim() == 5 && weight.size(3) == 1 && weight.size(4) == 1,
      "temporal_weight must be (O, M, t, 1, 1)");
  TemporalGeometry g{};
  g.n = n;
  g.m = weight.size(1);
  g.t = t;
  g.ho = ho;
  g.wo = wo;
  g.o = weight.size(0);
  g.kt = weight.size(2);
  g.st = stride[0];
  g.pt = padding[0];
  g.to = output_size(t, g.kt, g.st, g.pt);
  STD_TORCH_CHECK(
      g.m > 0 && g.o > 0 && g.kt > 0 && g.to > 0,
      "the temporal convolution has an empty axis or output");
  return g;
}

Tensor inference_output(
    const Tensor& x, const TemporalGeometry& t, const OptionalTensor& residual) {
  Tensor y = empty_ndhwc({t.n, t.o, t.to, t.ho, t.wo}, x);
  if (residual.has_value()) {
    check_ndhwc(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), "residual");
    for (int64_t axis = 0; axis < 5; ++axis) {
      STD_TORCH_CHECK(
          residual->size(axis) == y.size(axis), "residual must have the output's shape");
    }
  }
  return y;
}

}  // namespace r21d
