// A training step's backward pass on the GPU.
#include "cuda/training_operands.h"
#include "cuda/training_program.h"

namespace r21d::cuda {
namespace {

// A weight's gradient, its inputs innermost; empty where nobody wants it.
Tensor weight_gradient(const Tensor& weight, bool wanted) {
  return wanted ? empty_ndhwc(sizes_of(weight), weight)
                : empty_like_device({0}, weight.scalar_type(), weight);
}

void* data_if(Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_temporal_backward(
    const Tensor& grad,
    const Tensor& u,
    const Tensor& scale,
    const Tensor& shift,
    const Tensor& mean,
    const Tensor& invstd,
    const Tensor& weight,
    const Ints& stride,
    const Ints& padding,
    bool need_weight,
    const OptionalTensor& y,
    const OptionalTensor& grad_factor,
    const OptionalTensor& y_factor,
    const OptionalTensor& offset,
    const std::string& force) {
  const TemporalGeometry t = temporal_geometry_of(u, weight, stride, padding);
  const SpatialGeometry s = pointwise_before(t);
  const Ints sizes{t.n, t.o, t.to, t.ho, t.wo};
  check_ndhwc(grad, "grad");
  STD_TORCH_CHECK(sizes_of(grad) == sizes, "grad must have the output's shape");
  check_rows(grad, grad, "grad");
  check_device(u, grad, "grad");
  check_dtype(grad, u.scalar_type(), "grad");
  check_together({y, y_factor, offset}, "y, y_factor and offset");
  STD_TORCH_CHECK(
      !y.has_value() || grad_factor.has_value(), "grad_factor must be given where y is");
  if (y.has_value()) {
    check_rows(*y, grad, "y");
  }
  check_plan(training_too_large(s, t));
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  TorchDevice device(u);
  Tensor g = empty_ndhwc({t.n, mid_pitch(s), t.t, t.ho, t.wo}, u);
  Tensor grad_weight = weight_gradient(weight, need_weight);
  Tensor sum_g = empty_like_device({t.m}, ScalarType::Float, u);
  Tensor sum_g_normalized = empty_like_device({t.m}, ScalarType::Float, u);
  const TemporalBackwardOperands operands{
      grad.const_data_ptr(),
      {y.has_value() ? y->const_data_ptr() : nullptr,
       vector_on(u, grad_factor, t.o, "grad_factor"),
       vector_on(u, y_factor, t.o, "y_factor"),
       vector_on(u, offset, t.o, "offset")},
      u.const_data_ptr(),
      {vector_on(u, scale, t.m, "scale"),
       vector_on(u, shift, t.m, "shift"),
       vector_on(u, mean, t.m, "mean"),
       vector_on(u, invstd, t.m, "invstd"),
       sum_g.mutable_data_ptr<float>(),
       sum_g_normalized.mutable_data_ptr<float>()},
      strided(weight),
      g.mutable_data_ptr(),
      data_if(grad_weight, need_weight)};
  if (t.n == 0) {
    device.clear(grad_weight);
    device.clear(sum_g);
    device.clear(sum_g_normalized);
    return {g, grad_weight, sum_g, sum_g_normalized};
  }
  const BackwardPlans plans =
      plan_temporal_backward(known_gpu(u.get_device_index()), operands, s, t, parse_force(force));
  check_tile(plans.gradient.pixel_warps);
  check_tile(plans.weight.row_warps);
  with_dtype(
      u, [&](auto type) { run_temporal_backward<decltype(type)>(device, operands, s, t, plans); });
  return {g, grad_weight, sum_g, sum_g_normalized};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_spatial_backward(
    const Tensor& g,
    const Tensor& u,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& g_factor,
    const OptionalTensor& u_factor,
    const OptionalTensor& offset,
    const Ints& stride,
    const Ints& padding,
    bool need_x,
    bool need_weight,
    const OptionalTensor& in_scale,
    const OptionalTensor& in_shift,
    const OptionalTensor& in_mean,
    const OptionalTensor& in_invstd,
    const OptionalTensor& residual,
    const std::string& force) {
  const SpatialGeometry s = spatial_geometry(x, weight, stride, padding);
  check_device(x, weight, "spatial_weight");
  check_mid(g, s, x, "g");
  check_mid(u, s, x, "u");
  check_together({u_factor, offset}, "u_factor and offset");
  check_together({in_scale, in_shift, in_mean, in_invstd}, "in_scale to in_invstd");
  const bool normed = in_scale.has_value();
  STD_TORCH_CHECK(
      !residual.has_value() || (need_x && !normed),
      "a residual is added to the gradient of x, where that is wanted and not summed");
  STD_TORCH_CHECK(need_x || !normed, "the sums over the gradient of x are made with that gradient");
  if (residual.has_value()) {
    check_rows(*residual, x, "residual");
  }
  check_plan(training_too_large(s, pointwise_after(s)));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  TorchDevice device(x);
  Tensor grad_x = need_x ? empty_ndhwc(sizes_of(x), x) : empty_like_device({0}, x.scalar_type(), x);
  Tensor grad_weight = weight_gradient(weight, need_weight);
  Tensor sum_g = empty_like_device({normed ? s.c : 0}, ScalarType::Float, x);
  Tensor sum_g_normalized = empty_like_device({normed ? s.c : 0}, ScalarType::Float, x);
  const SpatialBackwardOperands operands{
      g.const_data_ptr(),
      {u.const_data_ptr(),
       vector_on(x, g_factor, s.m, "g_factor"),
       vector_on(x, u_factor, s.m, "u_factor"),
       vector_on(x, offset, s.m, "offset")},
      x.const_data_ptr(),
      {vector_on(x, in_scale, s.c, "in_scale"),
       vector_on(x, in_shift, s.c, "in_shift"),
       vector_on(x, in_mean, s.c, "in_mean"),
       vector_on(x, in_invstd, s.c, "in_invstd"),
       normed ? sum_g.mutable_data_ptr<float>() : nullptr,
       normed ? sum_g_normalized.mutable_data_ptr<float>() : nullptr},
      residual.has_value() ? residual->const_data_ptr() : nullptr,
      strided(weight),
      data_if(grad_x, need_x),
      data_if(grad_weight, need_weight)};
  if (s.n == 0) {
    device.clear(grad_weight);
    device.clear(sum_g);
    device.clear(sum_g_normalized);
    return {grad_x, grad_weight, sum_g, sum_g_normalized};
  }
  const BackwardPlans plans =
      plan_spatial_backward(known_gpu(x.get_device_index()), operands, s, parse_force(force));
  check_tile(plans.gradient.pixel_warps);
  check_tile(plans.weight.row_warps);
  with_dtype(
      x, [&](auto type) { run_spatial_backward<decltype(type)>(device, operands, s, plans); });
  return {grad_x, grad_weight, sum_g, sum_g_normalized};
}

std::tuple<Tensor, Tensor, Tensor> join_backward(
    const Tensor& grad,
    const Tensor& out,
    const Tensor& y,
    const Tensor& mean,
    const Tensor& invstd) {
  check_rows(y, y, "y");
  check_rows(grad, y, "grad");
  check_rows(out, y, "out");
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  TorchDevice device(y);
  const int64_t channels = y.size(1);
  Tensor g = empty_ndhwc(sizes_of(y), y);
  Tensor sum_g = empty_like_device({channels}, ScalarType::Float, y);
  Tensor sum_g_normalized = empty_like_device({channels}, ScalarType::Float, y);
  const JoinBackwardOperands operands{
      grad.const_data_ptr(),
      out.const_data_ptr(),
      y.const_data_ptr(),
      vector_on(y, mean, channels, "mean"),
      vector_on(y, invstd, channels, "invstd"),
      g.mutable_data_ptr(),
      sum_g.mutable_data_ptr<float>(),
      sum_g_normalized.mutable_data_ptr<float>()};
  if (y.numel() == 0) {
    device.clear(sum_g);
    device.clear(sum_g_normalized);
    return {g, sum_g, sum_g_normalized};
  }
  with_dtype(y, [&](auto type) {
    run_join_backward<decltype(type)>(device, operands, y.numel() / channels, channels);
  });
  return {g, sum_g, sum_g_normalized};
}

}  // namespace
}  // namespace r21d::cuda

STABLE_TORCH_LIBRARY_IMPL(r21d, CUDA, m) {
  m.impl("train_temporal_backward", TORCH_BOX(&r21d::cuda::train_temporal_backward));
  m.impl("train_spatial_backward", TORCH_BOX(&r21d::cuda::train_spatial_backward));
  m.impl("join_backward", TORCH_BOX(&r21d::cuda::join_backward));
}
