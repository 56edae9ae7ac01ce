// BatchNorm and ReLU as training needs them between the convolutions: one pass each.
#include "cpu/stages.h"

#include <cstring>

namespace r21d::cpu {
namespace {

// Pixels that a worker takes at a time. Sums are made in float32 within a run and merged in float64
// in the order of the runs: short runs keep the rounding error below that of stock PyTorch's sums.
constexpr int64_t kRunPixels = 64;

struct Pixels {
  Dtype dtype;
  int64_t count;
  int64_t channels;

  int64_t runs() const {
    return ceil_div(count, kRunPixels);
  }
};

Pixels pixels_of(const Tensor& u) {
  check_ndhwc(u, "u");
  const Dtype dtype = dtype_of(u, "u");
  return {dtype, u.size(0) * u.size(2) * u.size(3) * u.size(4), u.size(1)};
}

void check_like(const Tensor& x, const Tensor& u, const char* name) {
  check_ndhwc(x, name);
  check_dtype(x, u.scalar_type(), name);
  for (int64_t axis = 0; axis < 5; ++axis) {
    STD_TORCH_CHECK(x.size(axis) == u.size(axis), name, " must have u's shape");
  }
}

Tensor like(const Tensor& u) {
  return empty_ndhwc({u.size(0), u.size(1), u.size(2), u.size(3), u.size(4)}, u);
}

// body(run, first pixel, pixels) for each run.
template <class Body>
void for_each_run(const Pixels& pixels, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t runs = pixels.runs();
  for_each_item(runs, threads < runs ? threads : runs, [&](int64_t, int64_t run) {
    const int64_t first = run * kRunPixels;
    const int64_t left = pixels.count - first;
    body(run, first, left < kRunPixels ? left : kRunPixels);
  });
}

Tensor norm_relu(const Tensor& u, const Tensor& scale, const Tensor& shift) {
  const Pixels pixels = pixels_of(u);
  const float* scales = vector_data(scale, pixels.channels, "scale");
  const float* shifts = vector_data(shift, pixels.channels, "shift");
  Tensor v = like(u);
  const void* in = u.const_data_ptr();
  void* out = v.mutable_data_ptr();
  const Isa& table = isa();
  for_each_run(pixels, [&](int64_t, int64_t first, int64_t count) {
    const int64_t index = first * pixels.channels;
    table.norm_relu(
        pixels.dtype,
        at(in, pixels.dtype, index),
        scales,
        shifts,
        count,
        pixels.channels,
        at(out, pixels.dtype, index));
  });
  return v;
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_backward(
    const Tensor& grad,
    const Tensor& u,
    const Tensor& scale,
    const Tensor& shift,
    const Tensor& mean,
    const Tensor& invstd) {
  const Pixels pixels = pixels_of(u);
  const int64_t channels = pixels.channels;
  check_like(grad, u, "grad");
  const float* scales = vector_data(scale, channels, "scale");
  const float* shifts = vector_data(shift, channels, "shift");
  const float* means = vector_data(mean, channels, "mean");
  const float* invstds = vector_data(invstd, channels, "invstd");
  Tensor g = like(u);
  Tensor sum_g = empty_like_device({channels}, ScalarType::Float, u);
  Tensor sum_g_normalized = empty_like_device({channels}, ScalarType::Float, u);
  const Tensor partial = empty_like_device({pixels.runs(), 2, channels}, ScalarType::Float, u);
  auto* partials = static_cast<float*>(partial.mutable_data_ptr());
  const void* incoming = grad.const_data_ptr();
  const void* stored = u.const_data_ptr();
  void* out = g.mutable_data_ptr();
  const Isa& table = isa();
  for_each_run(pixels, [&](int64_t run, int64_t first, int64_t count) {
    float* sums = partials + run * 2 * channels;
    std::memset(sums, 0, static_cast<size_t>(2 * channels) * sizeof(float));
    const int64_t index = first * channels;
    table.norm_relu_backward(
        pixels.dtype,
        at(incoming, pixels.dtype, index),
        at(stored, pixels.dtype, index),
        scales,
        shifts,
        means,
        invstds,
        count,
        channels,
        at(out, pixels.dtype, index),
        sums,
        sums + channels);
  });
  std::vector<double> totals(static_cast<size_t>(2 * channels), 0.0);
  for (int64_t run = 0; run < pixels.runs(); ++run) {
    const float* sums = partials + run * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) {
      totals[static_cast<size_t>(i)] += sums[i];
    }
  }
  auto* sum = sum_g.mutable_data_ptr<float>();
  auto* sum_normalized = sum_g_normalized.mutable_data_ptr<float>();
  for (int64_t i = 0; i < channels; ++i) {
    sum[i] = static_cast<float>(totals[static_cast<size_t>(i)]);
    sum_normalized[i] = static_cast<float>(totals[static_cast<size_t>(channels + i)]);
  }
  return {g, sum_g, sum_g_normalized};
}

Tensor norm_backward(
    const Tensor& g,
    const Tensor& u,
    const Tensor& g_factor,
    const OptionalTensor& u_factor,
    const OptionalTensor& offset) {
  const Pixels pixels = pixels_of(u);
  check_like(g, u, "g");
  STD_TORCH_CHECK(u_factor.has_value() == offset.has_value(), "u_factor and offset go together");
  const float* g_factors = vector_data(g_factor, pixels.channels, "g_factor");
  const float* u_factors = vector_data(u_factor, pixels.channels, "u_factor");
  const float* offsets = vector_data(offset, pixels.channels, "offset");
  Tensor grad_u = like(u);
  const void* incoming = g.const_data_ptr();
  const void* stored = u.const_data_ptr();
  void* out = grad_u.mutable_data_ptr();
  const Isa& table = isa();
  for_each_run(pixels, [&](int64_t, int64_t first, int64_t count) {
    const int64_t index = first * pixels.channels;
    table.norm_backward(
        pixels.dtype,
        at(incoming, pixels.dtype, index),
        at(stored, pixels.dtype, index),
        g_factors,
        u_factors,
        offsets,
        count,
        pixels.channels,
        at(out, pixels.dtype, index));
  });
  return grad_u;
}

}  // namespace
}  // namespace r21d::cpu

STABLE_TORCH_LIBRARY_IMPL(r21d, CPU, m) {
  m.impl("norm_relu", TORCH_BOX(&r21d::cpu::norm_relu));
  m.impl("norm_relu_backward", TORCH_BOX(&r21d::cpu::norm_relu_backward));
  m.impl("norm_backward", TORCH_BOX(&r21d::cpu::norm_backward));
}
